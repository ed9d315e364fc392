"""The overlays of two regions, run on this machine with the real binaries and joined by their relays: what an operator says in
one region reaches the other, each serves its own users while they are apart, and they are of one mind again afterwards.

    unshare --net --mount python3 k8s/check/regions.py RENDERED_A RENDERED_B BINARIES"""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from pods import Cluster, Network, bus_secrets, certificate, get, until


def region_of(rendered, network, secrets):
    """A region's cluster, whose relays are known everywhere as the overlay says."""
    name = rendered.stem
    bus = bus_secrets(rendered, network.binaries, network.work / f"{name}-users")
    cluster = Cluster(rendered, network, {**bus, **secrets}, name)
    region = cluster.config("region-")["name"]
    network.hosts += [(pod.address, f"relay.{region}.example.com") for pod in cluster.of("relay")]
    cluster.region, cluster.operator = region, bus["bus-users"]["operator"]
    return cluster


def tidegate(cluster, *arguments):
    servers = ",".join(f"nats://{pod.address}:4222" for pod in cluster.of("nats"))
    said = subprocess.run([cluster.network.binaries / "tidegate", *arguments, "--nats-servers", servers, "--nats-user", "operator",
                           "--nats-password", cluster.operator], capture_output=True, text=True, check=False)
    # 3: a status that shows a problem, such as what the test itself has taken away.
    assert said.returncode in (0, 3 if arguments[0] == "status" else 0), f"{arguments}: {said.stderr}"
    return said.stdout


def overrides(cluster):
    """What a region knows that operators have said."""
    return json.loads(tidegate(cluster, "status", "--json"))["overrides"]


def serves(region, cluster):
    """Whether all of a region's edges answer from a cluster of the fleet."""
    answers = [get(f"http://{pod.address}:8080/") for pod in region.of("edge")]
    return all(status == 200 and cluster in body for status, body in answers)


def drain_elsewhere(told, concerned, other):
    """What is drained by the bus of one region is drained in the other, until the drain is withdrawn."""
    own = f"{concerned.region}-1"
    tidegate(told, "drain", "cluster", own)
    until(f"{own}, drained in {told.region}, serves nobody in {concerned.region}", lambda: serves(concerned, f"{other.region}-1"))
    tidegate(told, "undrain", "cluster", own)
    until(f"it serves {concerned.region} again", lambda: serves(concerned, own))


def main():
    *rendered, binaries = (Path(argument) for argument in sys.argv[1:])
    network = Network(binaries)
    relays = certificate(network.work, "relay", "relay.us-east.example.com", "relay.eu-west.example.com")
    secrets = {
        "edge-tls": certificate(network.work, "edge", "shop.example.com"),
        "relay-tls": relays | {"ca.crt": relays["tls.crt"]},
        "relay-leaf": {"password": "between-regions"},
    }
    a, b = regions = [region_of(path, network, secrets) for path in rendered]
    try:
        for name, told in yaml.safe_load(a.fleet())["clusters"].items():
            network.serve(name, told["endpoints"][0])
        for region in regions:
            region.start()
        for region in regions:
            for pod in region.probed():
                until(f"{region.region}: {pod.name} is ready", lambda pod=pod: pod.probe("readinessProbe")[0] == 200)
            until(f"{region.region} serves its own users", lambda region=region: serves(region, f"{region.region}-1"))
        drain_elsewhere(a, b, a)

        for pod in b.of("relay"):
            pod.kill()
        tidegate(a, "drain", "cluster", f"{b.region}-1")
        assert overrides(b) == [], "what was said in one region was heard in another that is cut off"
        until(f"{b.region} serves its own users while it is cut off", lambda: serves(b, f"{b.region}-1"))
        for pod in b.of("relay"):
            pod.start()
        until("what was said while they were apart is heard when they are not", lambda: overrides(b))
        until(f"{b.region}'s users are served by {a.region}", lambda: serves(b, f"{a.region}-1"))
        tidegate(b, "undrain", "cluster", f"{b.region}-1")
        for region in regions:
            until(f"{region.region} serves its own users again", lambda region=region: serves(region, f"{region.region}-1"))
    except BaseException:
        for region in regions:
            region.show_logs()
        raise
    finally:
        for region in regions:
            region.stop()
        network.stop()


main()
