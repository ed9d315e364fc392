//! Two regions as deployed: each has a server with a JetStream domain of its own, a leaf of the region's relay; the relays are
//! joined by gateways and store nothing.

use super::{NatsServer, lasting_port};

/// The servers of two regions, which are connected through relays unless they are cut apart.
#[derive(Debug)]
pub struct Regions {
    /// The regions' servers.
    pub servers: [NatsServer; 2],
    relays: [NatsServer; 2],
}

impl Regions {
    /// Starts the servers and waits until each is ready. They are connected a moment later.
    ///
    /// # Panics
    /// When there is no nats-server, or one is not ready in time.
    pub fn start() -> Regions {
        let (leaf_ports, gateway_ports) = ([0; 2].map(|_| lasting_port()), [0; 2].map(|_| lasting_port()));
        let relays = [0, 1].map(|own: usize| {
            let other = 1 - own;
            let config = format!(
                r#"
                server_name: relay-{own}
                leafnodes {{ listen: "127.0.0.1:{leaf}" }}
                gateway {{
                  name: relay-{own}
                  listen: "127.0.0.1:{gateway}"
                  gateways: [ {{ name: relay-{other}, urls: ["nats://127.0.0.1:{other_gateway}"] }} ]
                }}
                accounts {{
                  SYS: {{}}
                  TIDEGATE: {{ users: [ {{
                    user: region
                    password: secret
                    permissions: {{
                      publish: ["tidegate.v1.>", "_INBOX.tidegate.>"]
                      subscribe: ["tidegate.v1.>", "_INBOX.tidegate.>"]
                    }}
                  }} ] }}
                }}
                system_account: SYS
                "#,
                leaf = leaf_ports[own],
                gateway = gateway_ports[own],
                other_gateway = gateway_ports[other],
            );
            NatsServer::start_with(&config, false)
        });
        let servers = [0, 1].map(|own: usize| {
            let config = format!(
                r#"
                server_name: region-{own}
                jetstream {{ domain: region-{own} }}
                leafnodes {{
                  reconnect: 1
                  remotes: [ {{
                    urls: ["nats-leaf://region:secret@127.0.0.1:{leaf}"]
                    deny_exports: ["$JS.>", "$KV.>"]
                    deny_imports: ["$JS.>", "$KV.>"]
                  }} ]
                }}
                "#,
                leaf = leaf_ports[own],
            );
            NatsServer::start_with(&config, true)
        });
        Regions { servers, relays }
    }

    /// Cuts the regions apart.
    pub fn cut(&mut self) {
        self.relays[0].kill();
    }

    /// Joins them again.
    pub fn heal(&mut self) {
        self.relays[0].restart();
    }
}
