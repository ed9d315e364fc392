"""What Kubernetes' schemas can't say of rendered manifests.

    python3 k8s/check/policy.py RENDERED..."""

import re
import sys
from pathlib import Path

import yaml

wrong = []
for file in map(Path, sys.argv[1:]):
    objects = [o for o in yaml.safe_load_all(file.read_text()) if o]
    named = {(o["kind"], o["metadata"]["name"]) for o in objects}
    tracing = [o for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "to-collector"]
    for workload in (o for o in objects if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet")):
        name, spec = workload["metadata"]["name"], workload["spec"]["template"]["spec"]

        def expect(right, what, name=name, file=file):
            if not right:
                wrong.append(f"{file}: {name}: {what}")

        pod = spec["securityContext"]
        expect(pod.get("runAsNonRoot") and pod.get("runAsUser"), "runs as root")
        expect(pod.get("seccompProfile") == {"type": "RuntimeDefault"}, "has no seccomp profile")
        expect(spec.get("enableServiceLinks") is False, "gets variables of Services, which may look like settings")
        expect(spec.get("automountServiceAccountToken") is False, "gets a token of the cluster's API")
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        expect(workload["spec"]["selector"]["matchLabels"].items() <= labels, "does not select its own pods")
        if name != "fleet":
            expect(("PodDisruptionBudget", name) in named, "has no PodDisruptionBudget")
        variables = {v["name"]: v.get("value") for c in spec["containers"] for v in c.get("env", [])}
        for policy in tracing:
            chosen, = policy["spec"]["podSelector"]["matchExpressions"]
            port = policy["spec"]["egress"][0]["ports"][0]["port"]
            if dict(labels)[chosen["key"]] in chosen["values"]:
                collector = variables.get("TIDEGATE_TELEMETRY__OTLP_ENDPOINT", "nowhere")
                expect(collector.endswith(f":{port}"), f"tells traces to {collector}, and may to port {port}")
        for container in spec["containers"]:
            security = container["securityContext"]
            expect(security.get("readOnlyRootFilesystem"), "can write its root")
            expect(security["capabilities"] == {"drop": ["ALL"]}, "has capabilities")
            expect(security.get("allowPrivilegeEscalation") is False, "can gain privileges")
            expect({"requests", "limits"} <= container["resources"].keys(), "has no resources")
            expect(":" in container["image"], "its image has no version")
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("livenessProbe", "readinessProbe"):
                expect(name == "fleet" or container[probe]["httpGet"]["port"] in ports, f"its {probe} asks no port of its own")
            flags = dict(re.findall(r"--proxy-drain-(\w+)=(\d+)s", " ".join(container.get("args", []))))
            if name == "edge":
                needed = sum(map(int, flags.values())) + 10
                expect(len(flags) == 2 and spec["terminationGracePeriodSeconds"] >= needed, f"is killed before it has drained: {flags}")
print("\n".join(wrong) or "ok: policies hold")
sys.exit(bool(wrong))
