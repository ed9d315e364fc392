"""Runs the pods of a rendered overlay on this machine as a kubelet would: a network namespace and address each, a root that is
read-only, the manifest's user, arguments, variables and volumes, ConfigMaps and Secrets behind swapped links. Needs root, and
must be started in namespaces of its own (`unshare --net --mount`), with which all of it goes away."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.99.0"
# How long anything may take, in seconds.
LIMIT = 90
SYSTEM = ["usr", "bin", "lib", "lib64", "sbin", "dev", "proc"]


def sh(*command):
    subprocess.run(command, check=True)


def entrypoints(dockerfile):
    """The program of each image of the Dockerfile."""
    found = re.findall(r"^FROM base AS (\S+)$.*?^ENTRYPOINT \[\"(\S+)\"\]$", dockerfile.read_text(), re.M | re.S)
    return {f"tidegate/{name}": program for name, program in found}


def publish(folder, version, files):
    """Puts files where a pod sees them, as the kubelet does: a new folder, then `..data` swapped to it."""
    content = folder / f"..{version}"
    content.mkdir(parents=True)
    for name, text in files.items():
        (content / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(content.name)
    (folder / "..data_tmp").rename(folder / "..data")


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


def certificate(folder, name, *hosts):
    """A certificate for hosts, which is its own authority, and its key."""
    key, chain = folder / f"{name}.key", folder / f"{name}.crt"
    alternatives = ",".join(f"DNS:{host}" for host in hosts)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternatives}", "-keyout", key, "-out", chain],
                   check=True, capture_output=True)
    return {"tls.crt": chain.read_text(), "tls.key": key.read_text()}


def bus_secrets(rendered, binaries, folder):
    """The Secrets of the bus for a rendered overlay, made as the README says."""
    objects = [o for o in yaml.safe_load_all(rendered.read_text()) if o and o["kind"] == "ConfigMap"]
    named = {o["metadata"]["name"]: o["data"] for o in objects}
    region = next(data["name"] for name, data in named.items() if name.startswith("region-"))
    folder.mkdir()
    (folder / "fleet.yaml").write_text(named["fleet"]["fleet.yaml"])
    passwords = folder / "bus"
    printed = subprocess.run([binaries / "tidegate", "bus-permissions", folder / "fleet.yaml", "--region", region,
                              "--passwords", passwords], capture_output=True, text=True, check=True).stdout
    read = lambda files: {file.name: file.read_text() for file in files if file.is_file()}
    return {
        "bus-permissions": {"permissions.conf": printed},
        "bus-edges": read((passwords / "edges").iterdir()),
        "bus-users": read(passwords.iterdir()),
    }


class Network:
    """What pods, and the clusters that they forward to, are on. In memory of this namespace: it goes away with it."""

    def __init__(self, binaries):
        sh("mount", "-t", "tmpfs", "none", "/run")
        self.work, self.binaries, self.addresses, self.origins = Path("/run/tidegate"), binaries, 1, []
        # Names that everybody knows, several addresses for one perhaps.
        self.hosts = []
        self.work.mkdir()
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", "pods", "type", "bridge")
        sh("ip", "address", "add", f"{NETWORK}.1/24", "dev", "pods")
        sh("ip", "link", "set", "pods", "up")

    def address(self):
        self.addresses += 1
        return f"{NETWORK}.{self.addresses}"

    def serve(self, name, endpoint):
        """Starts an origin for a cluster of the fleet, under the name that it has there."""
        host, port = endpoint.rsplit(":", 1)
        address = self.address()
        self.hosts.append((address, host))
        sh("ip", "address", "add", f"{address}/24", "dev", "pods")
        self.origins.append(subprocess.Popen(
            [self.binaries / "tidegate", "origin", "--name", name, "--listen", f"{address}:{port}"], stdout=subprocess.DEVNULL))

    def stop(self):
        for origin in self.origins:
            origin.kill()


class Cluster:
    """All pods of a Kubernetes cluster, and what they are made of. `name` tells them from those of others."""

    def __init__(self, rendered, network, secrets, name="one"):
        objects = [o for o in yaml.safe_load_all(rendered.read_text()) if o]
        self.name, self.network, self.work = name, network, network.work / name
        self.programs = entrypoints(ROOT / "deploy/Dockerfile")
        self.sources = {("ConfigMap", o["metadata"]["name"]): o["data"] for o in objects if o["kind"] == "ConfigMap"}
        self.sources |= {("Secret", name): files for name, files in secrets.items()}
        self.pods, self.hosts = {}, []
        for workload in objects:
            if workload["kind"] in ("Deployment", "StatefulSet"):
                for number in range(workload["spec"].get("replicas", 1)):
                    self.add(workload, number)

    def add(self, workload, number):
        name = f"{workload['metadata']['name']}-{number}"
        pod = Pod(name, workload["spec"], self.network.address(), self)
        self.pods[name] = pod
        service = workload["spec"].get("serviceName")
        if service:
            self.hosts.append((pod.address, f"{name}.{service}"))

    def of(self, workload):
        """The pods of a workload."""
        return [pod for name, pod in self.pods.items() if name.rsplit("-", 1)[0] == workload]

    def probed(self):
        return [pod for pod in self.pods.values() if "readinessProbe" in pod.container]

    def config(self, beginning):
        """The ConfigMap whose name begins so: kustomize adds a digest."""
        return next(data for (kind, name), data in self.sources.items() if kind == "ConfigMap" and name.startswith(beginning))

    def fleet(self):
        """The fleet file of its ConfigMap."""
        return self.sources["ConfigMap", "fleet"]["fleet.yaml"]

    def start(self):
        for pod in self.pods.values():
            pod.start()

    def stop(self):
        for pod in self.pods.values():
            pod.kill()

    def show_logs(self):
        for pod in self.pods.values():
            log = pod.folder / "log"
            if log.exists():
                print(f"--- {self.name} {pod.name}\n{log.read_text()[-1500:]}", file=sys.stderr)


class Pod:
    """A pod with one container."""

    def __init__(self, name, spec, address, cluster):
        self.name, self.spec, self.address, self.cluster = name, spec["template"]["spec"], address, cluster
        self.claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        (self.container,) = self.spec["containers"]
        self.folder = cluster.work / name
        self.process, self.space = None, f"{cluster.name}-{name}"
        sh("ip", "netns", "add", self.space)
        veth = f"v{address.rsplit('.', 1)[1]}"
        sh("ip", "link", "add", veth, "master", "pods", "up", "type", "veth", "peer", "name", "eth0", "netns", self.space)
        sh("ip", "-n", self.space, "address", "add", f"{address}/24", "dev", "eth0")
        sh("ip", "-n", self.space, "link", "set", "eth0", "up")
        sh("ip", "-n", self.space, "link", "set", "lo", "up")

    def volume(self, name):
        """The folder that is a volume's content."""
        folder = self.folder / "volumes" / name
        if folder.exists():
            return folder
        folder.mkdir(parents=True)
        volume = next((v for v in self.spec.get("volumes", []) if v["name"] == name), None)
        if volume is None and name not in self.claims:
            raise SystemExit(f"{self.name}: there is no volume {name}")
        if volume is None or "emptyDir" in volume:
            os.chown(folder, 65532, 65532)
            return folder
        files = {}
        for source in volume.get("projected", {"sources": [volume]})["sources"]:
            kind = "ConfigMap" if "configMap" in source else "Secret"
            told = source.get("configMap") or source["secret"]
            found = self.cluster.sources.get((kind, told.get("name") or told.get("secretName")))
            if found is None and not told.get("optional"):
                raise SystemExit(f"{self.name}: the volume {name} needs a {kind} that is not there: {told}")
            files |= found or {}
        publish(folder, "v0", files)
        return folder

    def variables(self):
        """The environment, with references as Kubernetes resolves them."""
        fields = {"metadata.name": self.name, "spec.nodeName": f"node-{self.name}"}
        env = {}
        for item in self.container.get("env", []):
            given = item.get("valueFrom", {})
            if "fieldRef" in given:
                value = fields[given["fieldRef"]["fieldPath"]]
            elif given:
                kind, ref = next(iter(given.items()))
                value = self.cluster.sources["ConfigMap" if kind == "configMapKeyRef" else "Secret", ref["name"]][ref["key"]]
            else:
                value = re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], item["value"])
            env[item["name"]] = value
        return env

    def command(self):
        image = self.container["image"].rsplit(":", 1)[0]
        program = self.container.get("command") or [self.cluster.programs[image]]
        return program + self.container.get("args", [])

    def start(self):
        root = self.folder / "root"
        if not root.exists():
            self.prepare(root)
        user = self.spec["securityContext"]
        program, *arguments = self.command()
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", f"--root={root}", f"--setgid={user['runAsGroup']}",
             f"--setuid={user['runAsUser']}", "setpriv", "--no-new-privs", f"/image/{Path(program).name}", *arguments],
            env=self.variables(), stdout=self.log, stderr=self.log)

    def prepare(self, root):
        """Makes what the process sees as its root."""
        root.mkdir(parents=True)
        sh("mount", "-t", "tmpfs", "none", root)
        for folder in SYSTEM:
            if Path("/", folder).exists():
                (root / folder).mkdir()
                sh("mount", "--rbind", f"/{folder}", root / folder)
                if folder not in ("dev", "proc"):
                    sh("mount", "-o", "remount,bind,ro", root / folder)
        (root / "etc").mkdir()
        known = self.cluster.network.hosts + self.cluster.hosts
        hosts = "".join(f"{address} {name}\n" for address, name in known)
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (root / "image").mkdir()
        sh("mount", "--bind", self.cluster.network.binaries, root / "image")
        for mount in self.container.get("volumeMounts", []):
            target, source = root / mount["mountPath"].lstrip("/"), self.volume(mount["name"])
            if "subPathExpr" in mount:
                env = self.variables()
                source = (source / re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], mount["subPathExpr"])).resolve(strict=True)
                target.parent.mkdir(parents=True)
                target.touch()
            else:
                target.mkdir(parents=True)
            sh("mount", "--bind", source, target)
            if mount.get("readOnly"):
                sh("mount", "-o", "remount,bind,ro", target)
        security = self.container["securityContext"]
        if security["readOnlyRootFilesystem"]:
            sh("mount", "-o", "remount,ro", root)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def probe(self, kind):
        """The status and body of a probe, None when nobody answers."""
        asked = self.container[kind]["httpGet"]
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == asked["port"])
        return get(f"http://{self.address}:{port}{asked['path']}")


def get(url, context=None):
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return None, str(error)
