"""Runs the pods of a rendered overlay on this machine as a kubelet would: a network namespace and address each, a root that is
read-only, the manifest's user, arguments, variables and volumes, ConfigMaps and Secrets behind swapped links. Needs root, and
must be started in namespaces of its own (`unshare --net --mount`), with which all of it goes away."""

import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

NETWORK = "10.99.0"
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


class Cluster:
    """All pods, and what they are made of."""

    def __init__(self, objects, work, binaries, dockerfile, secrets):
        self.work, self.binaries, self.programs = work, binaries, entrypoints(dockerfile)
        self.sources = {("ConfigMap", o["metadata"]["name"]): o["data"] for o in objects if o["kind"] == "ConfigMap"}
        self.sources |= {("Secret", name): files for name, files in secrets.items()}
        self.pods, self.hosts, self.addresses = {}, {}, 1
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", "pods", "type", "bridge")
        sh("ip", "address", "add", f"{NETWORK}.1/24", "dev", "pods")
        sh("ip", "link", "set", "pods", "up")
        for workload in objects:
            if workload["kind"] in ("Deployment", "StatefulSet"):
                for number in range(workload["spec"].get("replicas", 1)):
                    self.add(workload, number)

    def address(self):
        self.addresses += 1
        return f"{NETWORK}.{self.addresses}"

    def add(self, workload, number):
        name = f"{workload['metadata']['name']}-{number}"
        pod = Pod(name, workload["spec"], self.address(), self)
        self.pods[name] = pod
        service = workload["spec"].get("serviceName")
        if service:
            self.hosts[f"{name}.{service}"] = pod.address

    def start(self):
        for pod in self.pods.values():
            pod.start()

    def stop(self):
        for pod in self.pods.values():
            if pod.process and pod.process.poll() is None:
                pod.process.kill()


class Pod:
    """A pod with one container."""

    def __init__(self, name, spec, address, cluster):
        self.name, self.spec, self.address, self.cluster = name, spec["template"]["spec"], address, cluster
        self.claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        (self.container,) = self.spec["containers"]
        self.folder = cluster.work / name
        self.process = None
        sh("ip", "netns", "add", name)
        veth = f"v{address.rsplit('.', 1)[1]}"
        sh("ip", "link", "add", veth, "master", "pods", "up", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")
        sh("ip", "-n", name, "link", "set", "lo", "up")

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
        root.mkdir(parents=True)
        sh("mount", "-t", "tmpfs", "none", root)
        for folder in SYSTEM:
            if Path("/", folder).exists():
                (root / folder).mkdir()
                sh("mount", "--rbind", f"/{folder}", root / folder)
                if folder not in ("dev", "proc"):
                    sh("mount", "-o", "remount,bind,ro", root / folder)
        (root / "etc").mkdir()
        hosts = "".join(f"{address} {name}\n" for name, address in self.cluster.hosts.items())
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (root / "image").mkdir()
        sh("mount", "--bind", self.cluster.binaries, root / "image")
        for mount in self.container.get("volumeMounts", []):
            target = root / mount["mountPath"].lstrip("/")
            target.mkdir(parents=True)
            sh("mount", "--bind", self.volume(mount["name"]), target)
            if mount.get("readOnly"):
                sh("mount", "-o", "remount,bind,ro", target)
        security = self.container["securityContext"]
        if security["readOnlyRootFilesystem"]:
            sh("mount", "-o", "remount,ro", root)
        user = self.spec["securityContext"]
        program, *arguments = self.command()
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", f"--root={root}", f"--setgid={user['runAsGroup']}",
             f"--setuid={user['runAsUser']}", "setpriv", "--no-new-privs", f"/image/{Path(program).name}", *arguments],
            env=self.variables(), stdout=self.log, stderr=self.log)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

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
