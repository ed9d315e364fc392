#!/usr/bin/env python3
"""Measures what observing costs the edge proxy: CPU per request with metrics and traces off, with tracing on but nothing
sampled, and with all metrics and 1 % of requests traced, in one run.

Each of the three is a proxy of its own on the same core, with one worker. Rounds go in turn through all of them, and what
is shown is the median of the rounds' ratios to the one without, so that a slow phase of the machine meets both sides.

With --instructions valgrind counts what each executes in user space instead: the same on a busy machine as on a quiet one.
"""

import argparse
import contextlib
import http.server
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import bench

CASE = ("http", ["--h1", "-c", "64", "-t", "1"])
SCRAPE_EVERY = 5.0
# Under valgrind everything takes long.
SCRAPE_LIMIT = 30.0
OFF, UNSAMPLED, FULL = "off", "tracing on, nothing sampled", "all metrics, 1 % traces"
MOST = {UNSAMPLED: 1.02, FULL: 1.05}


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes what is sent by OTLP, and counts its bytes."""

    protocol_version = "HTTP/1.1"
    received = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Sink.received[self.path] = Sink.received.get(self.path, 0) + len(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Scraping(threading.Thread):
    """Reads the metrics as Prometheus does, until told to stop."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.stopped = threading.Event()
        self.seen = 0
        self.failure = None

    def run(self):
        try:
            while not self.stopped.wait(SCRAPE_EVERY):
                with urllib.request.urlopen(self.url, timeout=SCRAPE_LIMIT) as answer:
                    answer.read()
                self.seen += 1
        except Exception as failure:  # Whatever it is: what is measured without scrapes must not pass.
            self.failure = failure

    def stop(self):
        self.stopped.set()
        self.join()
        if self.failure:
            sys.exit(f"bench: metrics could not be read: {self.failure!r}, after {self.seen} scrapes")


def instructions(server, port, folder, count=16000):
    """Instructions in user space for a request, by callgrind, under which `server` runs."""
    def load(requests):
        run = subprocess.run(["h2load", "--h1", "-c", "16", "-t", "1", "-n", str(requests), f"http://127.0.0.1:{port}/"],
                             capture_output=True, text=True)
        if f"{requests} succeeded" not in run.stdout:
            sys.exit(f"bench: h2load failed: {run.stdout}{run.stderr}")

    def control(what):
        subprocess.run(["callgrind_control", what, str(server.process.pid)], check=True, capture_output=True)

    def total():
        dumps = (path.read_text(errors="replace") for path in folder.glob("callgrind.*"))
        return sum(int(found) for text in dumps for found in re.findall(r"^totals: (\d+)", text, re.M))

    load(2000)
    control("--zero")
    load(count)
    # What was gathered is sent twice a second.
    time.sleep(1)
    control("--dump")
    bench.wait_for(total, "callgrind's dump")
    return total() / count


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--binaries", type=Path, required=True, help="folder with Tidegate's binaries")
    options.add_argument("--proxy", type=Path, help="the tidegate-proxy to measure, where it is not the one in that folder")
    options.add_argument("--nats-server", default="nats-server")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=int, default=5)
    options.add_argument("--instructions", action="store_true", help="count instructions by valgrind")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--strict", action="store_true", help="fail when more is spent than is allowed")
    options = options.parse_args()
    os.sched_setaffinity(0, {int(bench.LOAD_CORE)})
    folder = Path(tempfile.mkdtemp(prefix="tidegate-observing-"))
    running, scraping = [], None
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    collector = ["--telemetry-otlp-endpoint", f"http://127.0.0.1:{sink.server_address[1]}"]
    try:
        process, origin_port = bench.origin(folder)
        running.append(process)
        bench.certificate(folder)
        servers = {}
        kinds = {
            OFF: [],
            UNSAMPLED: [*collector, "--proxy-trace-ratio", "0"],
            FULL: [*collector, "--proxy-trace-ratio", "0.01"],
        }
        binary = options.proxy or options.binaries / "tidegate-proxy"
        edges = [f"edge-{number}" for number in range(len(kinds))]
        commands = bench.tidegate(folder, origin_port, options.binaries, options.nats_server,
                                  dict.fromkeys(edges, binary), running)
        for number, (edge, (name, arguments)) in enumerate(zip(edges, kinds.items())):
            own = folder / str(number)
            own.mkdir()
            command, port, _ = commands[edge]
            admin = bench.free_port()
            if options.instructions:
                command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={own}/callgrind", *command]
            server = bench.Process([*command, "--admin-bind", f"127.0.0.1:{admin}", *arguments], bench.PROXY_CORE,
                                   folder / f"proxy-{number}.log")
            running.append(server)
            bench.wait_for(lambda port=port: bench.listens(port), f"{name} listening")
            servers[name] = (server, port)
            if name == FULL:
                scraping = Scraping(admin)
                scraping.start()
        rounds = {name: [] for name in servers}
        if options.instructions:
            for number, (name, (server, port)) in enumerate(servers.items()):
                rounds[name].append(instructions(server, port, folder / str(number)))
        # The first is to warm up.
        for number in range(0 if options.instructions else options.rounds + 1):
            for name, (server, port) in servers.items():
                used = bench.per_request(server, port, *CASE, options.seconds if number else 1)
                if number:
                    rounds[name].append(used)
        scraping.stop()
    except BaseException:
        for log in sorted(folder.glob("**/*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise
    finally:
        sink.shutdown()
        for process in reversed(running):
            process.stop()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    if not (scraping.seen and Sink.received.get("/v1/traces") and Sink.received.get("/v1/metrics")):
        sys.exit(f"bench: nothing was observed: {scraping.seen} scrapes, {Sink.received}")
    results = {name: {
        "each": statistics.median(used),
        "ratio": statistics.median(one / off for one, off in zip(used, rounds[OFF])),
        "rounds": used,
    } for name, used in rounds.items()}
    if options.json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        unit = "instructions" if options.instructions else "µs CPU"
        print(f"HTTP/1.1, keep-alive, {unit} a request; {scraping.seen} scrapes, OTLP bytes {Sink.received}")
        for name, result in results.items():
            allowed = f", at most {MOST[name]}" if name in MOST else ""
            print(f"{name:48}{result['each']:9.2f}  ({result['ratio']:5.3f}{allowed})")
    over = [name for name, most in MOST.items() if results[name]["ratio"] > most]
    if options.strict and over:
        sys.exit(f"bench: observing costs more than it may: {', '.join(over)}")


if __name__ == "__main__":
    main()
