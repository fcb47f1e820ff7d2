"""Receives webhooks and verifies them with the published Standard Webhooks library.

usage: verify.py SECRETS_FILE

Listens on a free port of loopback and prints it. The file holds the receiver's secrets, one a line,
and is read for each webhook. For each it prints a line of JSON: its id, whether each of the secrets
verifies it, and whether any verifies it with another body or under another id. Answers 401 where none
of the secrets does.
"""

import http.server
import json
import pathlib
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


def verifies(secret: str, body: bytes, headers: dict) -> bool:
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = dict(self.headers.items())
        renamed = {k.lower(): v for k, v in headers.items()} | {"webhook-id": "other"}
        secrets = pathlib.Path(sys.argv[1]).read_text().split()
        verified = [verifies(secret, body, headers) for secret in secrets]
        forged = any(
            verifies(secret, body + b" ", headers) or verifies(secret, body, renamed)
            for secret in secrets
        )
        self.send_response(204 if any(verified) else 401)
        self.end_headers()
        told = {"id": self.headers["webhook-id"], "verified": verified, "forged": forged}
        print(json.dumps(told), flush=True)

    def log_message(self, *_) -> None:
        pass


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    print(server.server_address[1], flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
