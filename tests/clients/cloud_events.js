// Publishes CloudEvents as the official library writes them.
//
// usage: cloud_events.js API_URL TENANT [AMQP_URL]
//
// Prints the ids of the events, one a line; exits 0 only when every publish was taken.
"use strict";

const amqp = require("amqplib");
const { CloudEvent, HTTP } = require("cloudevents");

function event(name, tenant) {
  console.log(`js-${name}`);
  return new CloudEvent({
    id: `js-${name}`,
    source: "/salons/17",
    type: "appointment.updated",
    subject: "8812",
    datacontenttype: "application/json",
    tenant,
    status: 'café "noir" 100%',
    previousstatus: "booked",
    version: 7,
    expiresat: new Date(Date.now() + 86400000).toISOString(),
    changes: '{"start_time":"10:00"}',
    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    data: { name: "Zoë", price: 12.5 },
  });
}

async function post(api, { headers, body }) {
  const answer = await fetch(`${api}/v1/events`, { method: "POST", headers, body });
  if (answer.status !== 202) {
    throw new Error(`${answer.status}: ${await answer.text()}`);
  }
}

async function main() {
  const [api, tenant, broker] = process.argv.slice(2);
  if (tenant === undefined) {
    console.error("usage: cloud_events.js API_URL TENANT [AMQP_URL]");
    process.exit(2);
  }
  await post(api, HTTP.structured(event("http-structured", tenant)));
  const plain = event("http-binary", tenant);
  // The library leaves what a header cannot hold to its caller.
  await post(api, HTTP.binary(plain.cloneWith({ status: encodeURIComponent(plain.status) })));
  const batch = [1, 2].map((n) => HTTP.structured(event(`http-batch-${n}`, tenant)).body);
  const headers = { "content-type": "application/cloudevents-batch+json" };
  await post(api, { headers, body: `[${batch.join(",")}]` });
  if (broker === undefined) {
    return;
  }

  const connection = await amqp.connect(broker);
  const channel = await connection.createConfirmChannel();
  for (const { headers, body } of [
    HTTP.structured(event("amqp-structured", tenant)),
    HTTP.binary(event("amqp-binary", tenant)),
  ]) {
    const contentType = headers["content-type"];
    const options = { contentType, headers, persistent: true, mandatory: true };
    channel.publish("postrider.events", "appointment.updated", Buffer.from(body), options);
  }
  await channel.waitForConfirms();
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
