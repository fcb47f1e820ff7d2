"""What schemathesis has to know of the API besides its document: how NDJSON is written."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson", "application/jsonl")
def ndjson(ctx, value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


# What has no end ends here once everything there is was told.
ENDLESS = ("/v1/tail", "/v1/listeners/{id}/requests")


@schemathesis.hook
def before_call(ctx, case, kwargs):
    if case.operation.path in ENDLESS:
        case.query = {**(case.query or {}), "follow": "false"}
