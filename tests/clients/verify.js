// Receives webhooks and verifies them with the published Standard Webhooks library.
//
// usage: verify.js SECRETS_FILE
//
// Listens on a free port of loopback and prints it. The file holds the receiver's secrets, one a
// line, and is read for each webhook. For each it prints a line of JSON: its id, whether each of the
// secrets verifies it, and whether any verifies it with another body or under another id. Answers 401
// where none of the secrets does.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

function verifies(secret, body, headers) {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) {
      return false;
    }
    throw error;
  }
}

function receive(file, request, body) {
  const { headers } = request;
  const secrets = fs.readFileSync(file, "utf8").split("\n").filter(Boolean);
  const renamed = { ...headers, "webhook-id": "other" };
  const verified = secrets.map((secret) => verifies(secret, body, headers));
  const forged = secrets.some(
    (secret) => verifies(secret, `${body} `, headers) || verifies(secret, body, renamed),
  );
  console.log(JSON.stringify({ id: headers["webhook-id"], verified, forged }));
  return verified.includes(true) ? 204 : 401;
}

function main() {
  const [file] = process.argv.slice(2);
  if (file === undefined) {
    console.error("usage: verify.js SECRETS_FILE");
    process.exit(2);
  }
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      response.writeHead(receive(file, request, Buffer.concat(chunks).toString("utf8"))).end();
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

main();
