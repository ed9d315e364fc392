#!/usr/bin/env python3
"""Measures the edge proxy beside HAProxy, nginx and Envoy: CPU per request and memory per idle connection, in one run.

Each proxy runs with one worker on a core of its own; the load and the origin share another core. CPU time is what the
kernel charged to the proxy's process. Rounds go in turn through all proxies, so that a slow phase of the machine meets
all of them; the median of rounds is shown, and its ratio to HAProxy's.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PROXY_CORE, LOAD_CORE = "1", "0"
BODY = 1024
RESERVED = {"tidegate", "haproxy", "nginx", "envoy"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, limit=20.0):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    sys.exit(f"bench: {what} did not happen within {limit} s")


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def without_huge_pages():
    """Memory grows by pages of 4 KiB then, not by 2 MiB, which are more than a thousand connections take."""
    PR_SET_THP_DISABLE = 41
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Process:
    """A server, pinned to a core, and its children."""

    def __init__(self, command, core, log, huge_pages=True):
        self.log = open(log, "wb")
        self.process = subprocess.Popen(
            ["taskset", "-c", core, *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            preexec_fn=None if huge_pages else without_huge_pages,
        )

    def pids(self):
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return [self.process.pid, *map(int, children.split())]

    def cpu_seconds(self):
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # Nanoseconds on a CPU, of every thread: finer than the ticks of /proc/PID/stat.
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
        return total

    def rss_bytes(self):
        total = 0
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1)) * 1024
        return total

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


def certificate(folder):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test,DNS:localhost,IP:127.0.0.1",
         "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
        check=True, capture_output=True,
    )
    (folder / "both.pem").write_text((folder / "tls.crt").read_text() + (folder / "tls.key").read_text())


def origin(folder):
    port = free_port()
    (folder / "origin.conf").write_text(f"""
        daemon off; worker_processes 1; error_log stderr; pid {folder}/origin.pid;
        events {{ worker_connections 4096; }}
        http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
          client_body_temp_path {folder}/o1; proxy_temp_path {folder}/o2; fastcgi_temp_path {folder}/o3;
          uwsgi_temp_path {folder}/o4; scgi_temp_path {folder}/o5;
          server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 "{'x' * BODY}"; }} }} }}""")
    process = Process(["nginx", "-c", folder / "origin.conf"], LOAD_CORE, folder / "origin.log")
    wait_for(lambda: listens(port), "the origin")
    return process, port


def haproxy(folder, origin_port):
    http, https = free_port(), free_port()
    (folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 8000
    tune.ssl.default-dh-param 2048
defaults
    mode http
    option http-keep-alive
    http-reuse always
    option forwardfor
    timeout client 300s
    timeout server 300s
    timeout connect 5s
frontend f
    bind 127.0.0.1:{http}
    bind 127.0.0.1:{https} ssl crt {folder}/both.pem alpn h2,http/1.1
    http-request set-header x-forwarded-proto https if {{ ssl_fc }}
    default_backend b
backend b
    server o 127.0.0.1:{origin_port} pool-max-conn -1
""")
    return ["haproxy", "-db", "-f", folder / "haproxy.cfg"], http, https


def nginx(folder, origin_port):
    http, https = free_port(), free_port()
    (folder / "nginx.conf").write_text(f"""
        daemon off; worker_processes 1; error_log stderr; pid {folder}/nginx.pid;
        events {{ worker_connections 8000; }}
        http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
          client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2; fastcgi_temp_path {folder}/n3;
          uwsgi_temp_path {folder}/n4; scgi_temp_path {folder}/n5;
          ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;
          ssl_session_cache shared:s:1m; ssl_protocols TLSv1.2 TLSv1.3;
          upstream o {{ server 127.0.0.1:{origin_port}; keepalive 256; keepalive_requests 100000000; }}
          server {{ listen 127.0.0.1:{http} backlog=4096; listen 127.0.0.1:{https} ssl http2 backlog=4096;
            location / {{ proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection "";
              proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}""")
    return ["nginx", "-c", folder / "nginx.conf"], http, https


def envoy(folder, origin_port, binary):
    http, https = free_port(), free_port()

    def listener(name, port, tls):
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "codec_type": "AUTO", "use_remote_address": True,
            "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "o"}}]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        if tls:
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{
                    "certificate_chain": {"filename": f"{folder}/tls.crt"},
                    "private_key": {"filename": f"{folder}/tls.key"}}]}}}
        return {"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [chain]}

    config = {"static_resources": {
        "listeners": [listener("http", http, False), listener("https", https, True)],
        "clusters": [{"name": "o", "connect_timeout": "5s", "type": "STATIC", "load_assignment": {
            "cluster_name": "o", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {
                "address": "127.0.0.1", "port_value": origin_port}}}}]}]}}]}}
    (folder / "envoy.json").write_text(json.dumps(config))
    return [binary, "-c", folder / "envoy.json", "--concurrency", "1", "--log-level", "error",
            "--use-dynamic-base-id", "--disable-hot-restart"], http, https


def tidegate(folder, origin_port, binaries, nats_server, proxies, others):
    """Proxies as users run them: routes come from a route-computer over NATS. Only the proxies are measured."""
    nats = free_port()
    ports = {name: (free_port(), free_port()) for name in proxies}
    edges, listeners = [], []
    for name, (http, https) in ports.items():
        edges.append(f"  {name}: {{ region: here, listeners: [{name}-plain, {name}-secure] }}")
        listeners.append(f"""
  {name}-plain: {{ bind: "127.0.0.1:{http}", protocol: http, limits: {{ idle_timeout: 10m }} }}
  {name}-secure:
    bind: "127.0.0.1:{https}"
    protocol: https
    certificates: [{{ chain: {folder}/tls.crt, key: {folder}/tls.key }}]
    limits: {{ idle_timeout: 10m }}""")
    (folder / "fleet.yaml").write_text("\n".join([f"""
regions: {{ here: {{}} }}
clusters: {{ origins: {{ region: here, endpoints: ["127.0.0.1:{origin_port}"], idle_timeout: 5m }} }}
services:
  site: {{ hosts: ["*"], clusters: [origins], health: {{ path: /, interval: 1s }} }}
edges:""", *edges, "listeners:", *listeners]))
    url = f"nats://127.0.0.1:{nats}"
    others.append(Process([nats_server, "-a", "127.0.0.1", "-p", nats, "-js", "-sd", folder / "js"], LOAD_CORE,
                          folder / "nats.log"))
    wait_for(lambda: listens(nats), "nats-server")
    subprocess.run([binaries / "tidegate", "apply", folder / "fleet.yaml", "--nats-servers", url], check=True,
                   stdout=subprocess.DEVNULL)
    others.append(Process([binaries / "tidegate-route-computer", "--nats-servers", url, "--region", "here",
                           "--name", "c"], LOAD_CORE, folder / "computer.log"))
    others.append(Process([binaries / "tidegate-health-prober", "--nats-servers", url, "--region", "here", "--name",
                           "p"], LOAD_CORE, folder / "prober.log"))
    return {
        name: ([binary, "--nats-servers", url, "--name", name, "--region", "here", "--proxy-workers", "1",
                "--proxy-state-dir", folder / f"state-{name}"], *ports[name])
        for name, binary in proxies.items()
    }


def h2load(arguments, seconds, port, scheme):
    run = subprocess.run(
        ["taskset", "-c", LOAD_CORE, "h2load", *arguments, "-D", str(seconds), f"{scheme}://127.0.0.1:{port}/"],
        capture_output=True, text=True,
    )
    done = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", run.stdout)
    if not done:
        sys.exit(f"bench: h2load failed: {run.stdout}{run.stderr}")
    return int(done.group(3)), int(done.group(4))


CASES = {
    "HTTP/1.1, keep-alive": ("http", ["--h1", "-c", "64", "-t", "1"]),
    "HTTP/1.1 over TLS 1.3": ("https", ["--h1", "-c", "64", "-t", "1"]),
    "HTTP/2 over TLS": ("https", ["-c", "16", "-m", "10", "-t", "1"]),
}


CPU = ", µs CPU a request"
# The case that --most limits.
LIMITED = f"HTTP/1.1, keep-alive{CPU}"
HANDSHAKE = "full TLS 1.3 handshake and one request, µs CPU"
IDLE = {tls: f"idle {'TLS' if tls else 'plain'} connection, bytes" for tls in (False, True)}


def per_request(server, port, scheme, arguments, seconds):
    """Microseconds of CPU per request."""
    before = server.cpu_seconds()
    done, failed = h2load(arguments, seconds, port, scheme)
    used = server.cpu_seconds() - before
    if failed or not done:
        sys.exit(f"bench: {failed} of {done + failed} requests failed")
    return used / done * 1e6


def per_handshake(server, port, seconds):
    """Microseconds of CPU for a connection with a full TLS 1.3 handshake and one request on it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = b"GET / HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n"
    before, count = server.cpu_seconds(), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as stream:
            stream.sendall(request)
            while stream.recv(65536):
                pass
        count += 1
    return (server.cpu_seconds() - before) / count * 1e6


def idle_memory(server, port, count, tls):
    """Bytes of the proxy's memory per connection that has served a request and is idle."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"

    def connect():
        stream = socket.create_connection(("127.0.0.1", port), timeout=10)
        stream = context.wrap_socket(stream) if tls else stream
        stream.sendall(request)
        data = b""
        while data.count(b"x") < BODY:
            part = stream.recv(65536)
            if not part:
                sys.exit("bench: a connection was closed while memory was measured")
            data += part.split(b"\r\n\r\n", 1)[-1] if b"\r\n\r\n" in part else part
        return stream

    warm = [connect() for _ in range(50)]
    before = server.rss_bytes()
    streams = [connect() for _ in range(count)]
    used = server.rss_bytes() - before
    for stream in [*warm, *streams]:
        stream.close()
    return used / count


def another(text):
    """A further proxy: its name, in words that a fleet file takes, and its binary."""
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or name in RESERVED or not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH of a program, with a name that is not taken")
    return name, Path(path)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--binaries", type=Path, required=True, help="folder with Tidegate's binaries")
    options.add_argument("--proxy", type=Path, help="the tidegate-proxy to measure, where it is not the one in that folder")
    options.add_argument("--nats-server", default="nats-server")
    options.add_argument("--also", action="append", default=[], type=another, metavar="NAME=PATH",
                         help="measure another build of tidegate-proxy in the same rounds; may be repeated")
    options.add_argument("--envoy", help="Envoy's binary; left out when absent")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--only", help="measure only cases whose name holds this text")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--most", type=float, help="fail when HTTP/1.1 costs more than this many times HAProxy's CPU")
    parser, options = options, options.parse_args()
    cases = [*(f"{case}{CPU}" for case in CASES), HANDSHAKE, *IDLE.values()]
    measured = [case for case in cases if not options.only or options.only in case]
    if not measured:
        parser.error("--only: no case holds this text; there are " + "; ".join(cases))
    if options.most and LIMITED not in measured:
        parser.error(f"--most is about {LIMITED!r}, which --only leaves out")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
    running, results = [], {}
    try:
        certificate(folder)
        process, origin_port = origin(folder)
        running.append(process)
        proxies = {"tidegate": options.proxy or options.binaries / "tidegate-proxy", **dict(options.also)}
        commands = tidegate(folder, origin_port, options.binaries, options.nats_server, proxies, running)
        commands["haproxy"] = haproxy(folder, origin_port)
        if shutil.which("nginx"):
            commands["nginx"] = nginx(folder, origin_port)
        if options.envoy:
            commands["envoy"] = envoy(folder, origin_port, options.envoy)
        servers = {}

        def start(name, huge_pages=True):
            command, http, https = commands[name]
            server = Process(command, PROXY_CORE, folder / f"{name}.log", huge_pages)
            running.append(server)
            wait_for(lambda: listens(http) and listens(https), f"{name} listening")
            servers[name] = (server, {"http": http, "https": https})

        for name in commands:
            start(name)

        def rounds(case, measure):
            if case not in measured:
                return
            seen = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, (server, ports) in servers.items():
                    seen[name].append(measure(server, ports))
            results[case] = {name: statistics.median(values) for name, values in seen.items()}

        for case, (scheme, arguments) in CASES.items():
            rounds(f"{case}{CPU}",
                   lambda server, ports: per_request(server, ports[scheme], scheme, arguments, options.seconds))
        rounds(HANDSHAKE,
               lambda server, ports: per_handshake(server, ports["https"], options.seconds))
        for tls, case in IDLE.items():
            if case in measured:
                results[case] = {}
                for name in commands:
                    # What an earlier load has left behind would hold part of the connections.
                    running.remove(servers[name][0])
                    servers[name][0].stop()
                    start(name, huge_pages=False)
                    server, ports = servers[name]
                    results[case][name] = idle_memory(server, ports["https" if tls else "http"], 1000, tls)
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise
    finally:
        for process in reversed(running):
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(results))
    else:
        names = list(next(iter(results.values())))
        print(f"{'':48}" + "".join(f"{name:>18}" for name in names))
        for case, values in results.items():
            cells = (f"{values[name]:9.1f} ({values[name] / values['haproxy']:4.2f})" for name in names)
            print(f"{case:48}" + "".join(f"{cell:>18}" for cell in cells))
        print("in brackets: the ratio to HAProxy in the same run")
    if options.most:
        ratio = results[LIMITED]["tidegate"] / results[LIMITED]["haproxy"]
        if ratio > options.most:
            sys.exit(f"bench: HTTP/1.1 costs {ratio:.2f} times HAProxy's CPU, more than {options.most}")


if __name__ == "__main__":
    main()
