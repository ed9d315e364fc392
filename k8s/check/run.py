"""The single-cluster overlay, run on this machine with the real binaries: all become ready, requests pass, a changed ConfigMap is
applied and a changed Secret used without a restart, an edge drains within its grace. Writes the names of all metrics seen.

    unshare --net --mount python3 k8s/check/run.py RENDERED BINARIES METRICS"""

import ssl
import sys
import time
from pathlib import Path

import yaml
from pods import Cluster, Network, bus_secrets, certificate, get, publish, until


def main():
    rendered, binaries, metrics = (Path(argument) for argument in sys.argv[1:])
    network = Network(binaries)
    old, new = (certificate(network.work, name, "shop.example.com") for name in ("old", "new"))
    cluster = Cluster(rendered, network, {"edge-tls": old, **bus_secrets(rendered, binaries, network.work / "users")})
    try:
        for name, told in yaml.safe_load(cluster.fleet())["clusters"].items():
            network.serve(name, told["endpoints"][0])
        cluster.start()
        check(cluster, new, metrics)
    except BaseException:
        cluster.show_logs()
        raise
    finally:
        cluster.stop()
        network.stop()


def check(cluster, new, metrics):
    probed = cluster.probed()
    for pod in probed:
        until(f"{pod.name} is ready", lambda pod=pod: pod.probe("readinessProbe")[0] == 200)
        assert pod.probe("livenessProbe")[0] == 200, f"{pod.name} does not live"
    edge = cluster.pods["edge-0"]
    unchecked = ssl._create_unverified_context()
    until("a request passes", lambda: get(f"http://{edge.address}:8080/")[0] == 200)
    until("a request over TLS passes", lambda: get(f"https://{edge.address}:8443/", unchecked)[0] == 200)

    fleet = cluster.pods["fleet-0"]
    text = cluster.fleet().replace('hosts: ["*"]', "hosts: [shop.example.com]")
    publish(fleet.volume("fleet"), "v1", {"fleet.yaml": text})
    until("a changed ConfigMap is applied", lambda: get(f"http://{edge.address}:8080/")[0] not in (200, None))
    publish(edge.volume("tls"), "v1", new)
    shown = lambda: ssl.get_server_certificate((edge.address, 8443)).strip() == new["tls.crt"].strip()
    until("a changed Secret is in use", shown)

    names = set()
    for pod in probed:
        for line in get(f"http://{pod.address}:9100/metrics")[1].splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    metrics.write_text("".join(f"{name}\n" for name in sorted(names)))

    began = time.monotonic()
    edge.terminate()
    until("an edge says that it drains", lambda: get(f"http://{edge.address}:8080/.well-known/tidegate/health")[0] == 503)
    until("the drained edge ends", lambda: edge.process.poll() is not None)
    took, grace = time.monotonic() - began, edge.spec["terminationGracePeriodSeconds"]
    assert edge.process.returncode == 0 and took < grace, (edge.process.returncode, took, grace)
    print(f"ok: it took {took:.0f} s of {grace} s")
    for name in [n for n in cluster.pods if n != "edge-0"]:
        process = cluster.pods[name].process
        assert process.poll() is None, f"{name} has ended with {process.returncode}"


main()
