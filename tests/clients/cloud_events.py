"""Publishes CloudEvents as the official library writes them, in every mode it has.

usage: cloud_events.py API_URL TENANT [AMQP_URL]

Prints the ids of the events, one a line; exits 0 only when every publish was taken.
"""

import datetime
import sys
import urllib.request

import pika
from cloudevents.core.bindings import amqp, http, rabbitmq
from cloudevents.core.v1.event import CloudEvent


def event(name: str, tenant: str) -> CloudEvent:
    now = datetime.datetime.now(datetime.timezone.utc)
    print(f"py-{name}")
    return CloudEvent(
        attributes={
            "id": f"py-{name}",
            "source": "/salons/17",
            "type": "appointment.updated",
            "time": now,
            "subject": "8812",
            "datacontenttype": "application/json",
            # Ours.
            "tenant": tenant,
            "status": 'café "noir" 100%',
            "previousstatus": "booked",
            "version": 7,
            "expiresat": (now + datetime.timedelta(days=1)).isoformat(),
            "changes": '{"start_time":"10:00"}',
            # Somebody else's.
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
        data={"name": "Zoë", "price": 12.5},
    )


def post(api: str, headers: dict, body: bytes) -> None:
    request = urllib.request.Request(f"{api}/v1/events", data=body, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        if answer.status != 202:
            raise RuntimeError(f"{answer.status}: {answer.read()!r}")


def main() -> int:
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    api, tenant = sys.argv[1], sys.argv[2]
    for name, write in [
        ("http-structured", http.to_structured_event),
        ("http-binary", http.to_binary_event),
    ]:
        message = write(event(name, tenant))
        post(api, message.headers, message.body)
    batch = [
        http.to_structured_event(event(f"http-batch-{n}", tenant)).body for n in (1, 2)
    ]
    kind = "application/cloudevents-batch+json"
    post(api, {"content-type": kind}, b"[" + b",".join(batch) + b"]")
    if len(sys.argv) == 3:
        return 0

    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[3]))
    channel = connection.channel()
    channel.confirm_delivery()

    def publish(content_type: str, headers: dict, body: bytes) -> None:
        channel.basic_publish(
            exchange="postrider.events",
            routing_key="appointment.updated",
            body=body,
            properties=pika.BasicProperties(
                content_type=content_type, headers=headers, delivery_mode=2
            ),
            mandatory=True,
        )

    for name, write in [
        ("rabbitmq-structured", rabbitmq.to_structured_event),
        ("rabbitmq-binary", rabbitmq.to_binary_event),
    ]:
        message = write(event(name, tenant))
        publish(message.content_type, message.headers, message.body)
    for name, write in [
        ("amqp-structured", amqp.to_structured_event),
        ("amqp-binary", amqp.to_binary_event),
    ]:
        message = write(event(name, tenant))
        kind = message.properties["content-type"]
        publish(kind, message.application_properties, message.application_data)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
