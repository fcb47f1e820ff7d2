// Publishes events with nothing but amqplib, as any Node.js service would.
//
// usage: publish.js AMQP_URL COUNT TENANT PREFIX
//
// Event N has the id PREFIX-N. Every publish is confirmed; exits 0 only when all of them are.
"use strict";

const amqp = require("amqplib");

async function main() {
  const [url, count, tenant, prefix, ...rest] = process.argv.slice(2);
  if (prefix === undefined || rest.length > 0) {
    console.error("usage: publish.js AMQP_URL COUNT TENANT PREFIX");
    process.exit(2);
  }
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  let returned = 0;
  channel.on("return", () => (returned += 1));
  for (let number = 0; number < Number(count); number += 1) {
    const event = {
      id: `${prefix}-${number}`,
      tenant,
      type: "appointment.created",
      subject: number,
      status: "confirmed",
      data: { id: number, from: "amqplib" },
    };
    channel.publish("postrider.events", event.type, Buffer.from(JSON.stringify(event)), {
      contentType: "application/json",
      persistent: true,
      messageId: event.id,
      mandatory: true,
    });
  }
  await channel.waitForConfirms();
  await connection.close();
  if (returned > 0) {
    throw new Error(`${returned} messages came back unrouted`);
  }
  console.log(`published ${count}`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
