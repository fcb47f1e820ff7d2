"""Publishes events with nothing but pika, as any Python service would.

usage: publish.py AMQP_URL COUNT TENANT PREFIX

Event N has the id PREFIX-N. Every publish is confirmed; exits 0 only when all of them are.
"""

import json
import sys

import pika


def main() -> int:
    if len(sys.argv) != 5:
        print(__doc__, file=sys.stderr)
        return 2
    url, count, tenant, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    for number in range(count):
        event = {
            "id": f"{prefix}-{number}",
            "tenant": tenant,
            "type": "appointment.created",
            "subject": number,
            "status": "confirmed",
            "data": {"id": number, "from": "pika"},
        }
        # With confirms on, this returns after the broker's ack and raises on a nack or a return.
        channel.basic_publish(
            exchange="postrider.events",
            routing_key=event["type"],
            body=json.dumps(event).encode(),
            properties=pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                message_id=event["id"],
            ),
            mandatory=True,
        )
    connection.close()
    print(f"published {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
