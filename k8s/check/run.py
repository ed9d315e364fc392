"""The single-cluster overlay, run on this machine with the real binaries: all become ready, requests pass, a changed ConfigMap is
applied and a changed Secret used without a restart, an edge drains within its grace. Writes the names of all metrics seen.

    unshare --net --mount python3 k8s/check/run.py RENDERED BINARIES METRICS"""

import ssl
import subprocess
import sys
import time
from pathlib import Path

import yaml
from pods import Cluster, get, publish

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 90
# The passwords of the users of the bus.
BUS = {user: f"secret-of-{user}" for user in ("edge", "prober", "computer", "operator")}


def until(what, condition):
    """Waits for a condition, which returns what is true once it is."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        found = condition()
        if found:
            print(f"ok: {what}", flush=True)
            return found
        time.sleep(0.1)
    raise SystemExit(f"not within {LIMIT} s: {what}")


def certificate(folder, name):
    """A certificate and its key."""
    key, chain = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:shop.example.com", "-keyout", key, "-out", chain],
                   check=True, capture_output=True)
    return {"tls.crt": chain.read_text(), "tls.key": key.read_text()}


def main():
    rendered, binaries, metrics = (Path(argument) for argument in sys.argv[1:])
    objects = [o for o in yaml.safe_load_all(rendered.read_text()) if o]
    # In memory of this namespace: it goes away with it. Nothing is ever deleted here, as it has the system's folders within.
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    work = Path("/run/tidegate")
    work.mkdir()
    old, new = certificate(work, "old"), certificate(work, "new")
    cluster = Cluster(objects, work / "pods", binaries, ROOT / "deploy/Dockerfile", {"edge-tls": old, "bus": BUS})
    origins = []
    try:
        fleet = yaml.safe_load(cluster.sources["ConfigMap", "fleet"]["fleet.yaml"])
        for name, told in fleet["clusters"].items():
            address = cluster.address()
            host, port = told["endpoints"][0].rsplit(":", 1)
            cluster.hosts[host] = address
            subprocess.run(["ip", "address", "add", f"{address}/24", "dev", "pods"], check=True)
            origins.append(subprocess.Popen([binaries / "tidegate", "origin", "--name", name, "--listen", f"{address}:{port}"],
                                            stdout=subprocess.DEVNULL))
        cluster.start()
        check(cluster, new, metrics)
    except BaseException:
        for pod in cluster.pods.values():
            log = work / "pods" / pod.name / "log"
            if log.exists():
                print(f"--- {pod.name}\n{log.read_text()[-1500:]}", file=sys.stderr)
        raise
    finally:
        cluster.stop()
        for origin in origins:
            origin.kill()


def check(cluster, new, metrics):
    probed = [pod for pod in cluster.pods.values() if "readinessProbe" in pod.container]
    for pod in probed:
        until(f"{pod.name} is ready", lambda pod=pod: pod.probe("readinessProbe")[0] == 200)
        assert pod.probe("livenessProbe")[0] == 200, f"{pod.name} does not live"
    edge = cluster.pods["edge-0"]
    unchecked = ssl._create_unverified_context()
    until("a request passes", lambda: get(f"http://{edge.address}:8080/")[0] == 200)
    until("a request over TLS passes", lambda: get(f"https://{edge.address}:8443/", unchecked)[0] == 200)

    fleet = cluster.pods["fleet-0"]
    text = cluster.sources["ConfigMap", "fleet"]["fleet.yaml"].replace('hosts: ["*"]', "hosts: [shop.example.com]")
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
