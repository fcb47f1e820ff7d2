"""What the files under deploy/ promise one another; run by deploy/check."""

import json
import re
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FAULTS: list[str] = []


def fault(text: str) -> None:
    FAULTS.append(text)


def alerts() -> None:
    """Every alert has a case in which it fires and one in which it is quiet."""
    groups = yaml.safe_load((HERE / "prometheus/alerts.yml").read_text())["groups"]
    cases = yaml.safe_load((HERE / "prometheus/alerts.test.yml").read_text())["tests"]
    seen: dict[str, set[bool]] = {}
    for case in cases:
        for test in case["alert_rule_test"]:
            seen.setdefault(test["alertname"], set()).add(bool(test["exp_alerts"]))
    for rule in (rule for group in groups for rule in group["rules"]):
        for fires, word in ((True, "fires"), (False, "is quiet")):
            if fires not in seen.get(rule["alert"], set()):
                fault(f"alerts.test.yml: no case in which {rule['alert']} {word}")


def compose() -> None:
    """Mounted files exist, dependencies are services, nothing listens beyond loopback."""
    file = yaml.safe_load((HERE / "compose.yaml").read_text())
    services = file["services"]
    for name, service in services.items():
        where = f"compose.yaml: {name}"
        if "image" not in service:
            fault(f"{where} has no image")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (HERE / source).is_file():
                fault(f"{where} mounts {source}, which does not exist")
            if not source.startswith(".") and source not in file["volumes"]:
                fault(f"{where} uses the volume {source}, which is not declared")
        for other in service.get("depends_on", {}):
            if "healthcheck" not in services.get(other, {}):
                fault(f"{where} waits for {other}, which has no health check")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                fault(f"{where} publishes {port} beyond loopback")
        if service.get("image", "").startswith("postrider:"):
            # T18: a container of ours can write nowhere and become nobody.
            hardened = {
                "read_only": True,
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
            }
            for key, value in hardened.items():
                if service.get(key) != value:
                    fault(f"{where} has {key} = {service.get(key)}, not {value}")
            if service.get("privileged") or service.get("user") in ("0", "root", 0):
                fault(f"{where} runs with more rights than it needs")
        if build := service.get("build"):
            if not (HERE / build["context"] / build["dockerfile"]).is_file():
                fault(f"{where} is built from {build['dockerfile']}, which does not exist")
    scraped = yaml.safe_load((HERE / "prometheus/prometheus.yml").read_text())
    for job in scraped["scrape_configs"]:
        for name in (name for sd in job["dns_sd_configs"] for name in sd["names"]):
            if name not in services:
                fault(f"prometheus.yml scrapes {name}, which compose.yaml does not run")


def dockerfile() -> None:
    """What is copied exists, every base image has a version, and the end is not root."""
    text = (HERE / "Dockerfile").read_text().replace("\\\n", " ")
    user = None
    for line in text.splitlines():
        words = line.split()
        match words[:1]:
            case ["COPY"] if not words[1].startswith("--from"):
                for source in words[1:-1]:
                    if not (ROOT / source).exists():
                        fault(f"Dockerfile copies {source}, which does not exist")
            case ["FROM"] if ":" not in words[1]:
                fault(f"Dockerfile builds on {words[1]} without a version")
            case ["USER"]:
                user = words[1]
    if user in (None, "0", "root"):
        fault("Dockerfile ends as root")
    members = re.search(r"members = \[(.*)\]", (ROOT / "Cargo.toml").read_text())
    for member in re.findall(r'"([^"]+)"', members[1] if members else ""):
        if f"COPY {member.split('/')[0]}" not in text:
            fault(f"Dockerfile does not copy the workspace member {member}")


def definitions() -> None:
    """Permissions name users and virtual hosts that are there."""
    file = json.loads((HERE / "rabbitmq/definitions.example.json").read_text())
    users = {user["name"] for user in file["users"]}
    hosts = {host["name"] for host in file["vhosts"]}
    for permission in file["permissions"]:
        if permission["user"] not in users or permission["vhost"] not in hosts:
            fault(f"definitions.example.json: nobody is {permission['user']}@{permission['vhost']}")
    # T18: no user may do more than it needs, and the one that everybody knows is not there.
    where = "definitions.example.json:"
    if "guest" in users:
        fault(f"{where} guest is a user")
    for user in file["users"]:
        if user["tags"]:
            fault(f"{where} {user['name']} has the tags {user['tags']!r}")
        if not user["password"].startswith("change-me-"):
            fault(f"{where} {user['name']} has a password that looks like a real one")
    for permission in file["permissions"]:
        rights = {right: permission[right] for right in ("configure", "write", "read")}
        wanted = {right: r"^postrider\." for right in rights}
        if permission["user"] != "postrider":
            wanted = {"configure": "^$", "write": r"^postrider\.events$", "read": "^$"}
        if rights != wanted:
            fault(f"{where} {permission['user']} has {rights}, not {wanted}")


def dashboard() -> None:
    """Ids are unique and every query has one panel's data source."""
    panels = json.loads((HERE / "grafana/postrider.json").read_text())["panels"]
    ids = [panel["id"] for panel in panels]
    if len(ids) != len(set(ids)):
        fault("postrider.json: two panels have one id")
    for panel in panels:
        if panel["type"] != "row" and not panel.get("targets"):
            fault(f"postrider.json: {panel['title']} shows nothing")


for check in (alerts, compose, dockerfile, definitions, dashboard):
    check()
for text in FAULTS:
    print(text, file=sys.stderr)
sys.exit(1 if FAULTS else 0)
