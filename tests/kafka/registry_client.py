"""Writes payments to a topic with libraries that are not ours, and computes what a query must make of them.

usage: registry_client.py write SERVERS URL TOPIC FORMAT COMPRESSION SEED COUNT
       registry_client.py send SERVERS TOPIC HEX...
       registry_client.py read_avro URL FILE_OF_HEX_LINES
       registry_client.py require_backward URL SUBJECT

write: SERVERS is HOST:PORT, or the properties of a client as a JSON object; FORMAT is json, framed-json, avro, evolving-avro or protobuf. Schemas are registered at URL. Prints the expected
totals as JSON: [[window start in ms, account, count, sum of cents, sum of fees or null], ...].
send: sends messages as they are to partition 0.
read_avro: prints, as a JSON line each, the values of framed messages.
require_backward: makes a subject refuse schemas that cannot read the data of its newest one.
"""

import datetime
import decimal
import io
import json
import random
import struct
import sys
import time
import urllib.request
import uuid

WINDOW_MS = 10_000
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def request(url, path, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url + path, data=data, headers=headers, method=method)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def register(url, subject, schema, kind="AVRO", references=()):
    body = {"schema": schema, "schemaType": kind, "references": list(references)}
    return request(url, f"/subjects/{subject}/versions", body)["id"]


MONEY = {"type": "record", "name": "Money", "namespace": "com.acme", "fields": [
    {"name": "cents", "type": "long"},
    {"name": "currency", "type": {"type": "enum", "name": "Currency", "symbols": ["EUR", "CHF", "JPY"]}}]}

FIRST = {"type": "record", "name": "Payment", "namespace": "com.acme", "fields": [
    {"name": "account", "type": "string"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "amount", "type": "long"},
    {"name": "removed", "type": {"type": "array", "items": {"type": "map", "values": ["null", "double", "string"]}}},
    {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
]}

# `amount` has another name, `removed` is gone, the order is another one, and there are new fields.
SECOND = {"type": "record", "name": "Payment", "namespace": "com.acme", "fields": [
    {"name": "fee", "type": ["null", "int"], "default": None},
    {"name": "price", "type": {"type": "fixed", "name": "Price", "size": 9, "logicalType": "decimal", "precision": 12,
                               "scale": 2}},
    {"name": "cents", "type": "long", "aliases": ["amount"]},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "account", "type": "string"},
    {"name": "day", "type": {"type": "int", "logicalType": "date"}},
    {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
    {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    {"name": "total", "type": "com.acme.Money"},
]}


def payments(seed, count):
    """Makes payments up. Each has what any of the formats needs."""
    rng = random.Random(seed)
    for number in range(count):
        at = 1_700_000_000_000 + number * 40 + rng.randrange(-400, 400)
        yield {
            "account": rng.choice(["ann", "bob", "Zoë", "", "名前", "x" * 300]),
            "at": at,
            "cents": rng.choice([0, -1, 1, 10**12, -(10**12), rng.randrange(-100_000, 100_000)]),
            "fee": rng.choice([None, 0, rng.randrange(-(2**31), 2**31)]),
            "rng": rng,
        }


def avro_writer(url, topic, evolving):
    import fastavro
    ids, schemas = [], []
    money = fastavro.parse_schema(MONEY)
    for version, schema in enumerate([FIRST, SECOND][: 2 if evolving else 1]):
        references = []
        if version == 1:
            register(url, "com.acme.Money", json.dumps(MONEY))
            references = [{"name": "com.acme.Money", "subject": "com.acme.Money", "version": 1}]
        ids.append(register(url, f"{topic}-value", json.dumps(schema), references=references))
        schemas.append(fastavro.parse_schema(schema, named_schemas={"com.acme.Money": money} if version else {}))

    def write(payment):
        rng = payment["rng"]
        version = rng.randrange(len(ids))
        at = EPOCH + datetime.timedelta(milliseconds=payment["at"])
        price = decimal.Decimal(payment["cents"]) / 100
        row = {"account": payment["account"], "price": price}
        if version == 0:
            payment["fee"] = None
            row |= {"at": at, "amount": payment["cents"], "removed": [
                {"k%d" % n: rng.choice([None, rng.random(), "text"]) for n in range(rng.randrange(4))}
                for _ in range(rng.randrange(4))]}
        else:
            row |= {"at": at + datetime.timedelta(microseconds=rng.randrange(1000)), "cents": payment["cents"],
                    "fee": payment["fee"], "day": at.date(), "id": uuid.UUID(int=rng.getrandbits(128)),
                    "tags": ["t"] * rng.randrange(3),
                    "total": {"cents": payment["cents"], "currency": rng.choice(["EUR", "CHF", "JPY"])}}
        out = io.BytesIO()
        out.write(struct.pack(">bI", 0, ids[version]))
        fastavro.schemaless_writer(out, schemas[version], row)
        return out.getvalue()

    return write


PROTO = 'syntax = "proto3"; package com.acme; message Payment { string account = 1; int64 at = 2; sint64 cents = 3; ' \
        'optional sint32 fee = 4; repeated string tags = 5; }'


def protobuf_writer(url, topic):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    file = descriptor_pb2.FileDescriptorProto(name="payment.proto", package="com.acme", syntax="proto3")
    message = file.message_type.add(name="Payment")
    field = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate([("account", field.TYPE_STRING), ("at", field.TYPE_INT64),
                                           ("cents", field.TYPE_SINT64), ("fee", field.TYPE_SINT32)], 1):
        message.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    message.field[3].proto3_optional = True
    message.oneof_decl.add(name="_fee")
    message.field[3].oneof_index = 0
    message.field.add(name="tags", number=5, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("com.acme.Payment"))
    schema = register(url, f"{topic}-value", PROTO, "PROTOBUF")

    def write(payment):
        row = kind(account=payment["account"], at=payment["at"], cents=payment["cents"], tags=["t"])
        if payment["fee"] is not None:
            row.fee = payment["fee"]
        return struct.pack(">bI", 0, schema) + b"\0" + row.SerializeToString()

    return write


def json_writer(url, topic, framed):
    prefix = b""
    if framed:
        prefix = struct.pack(">bI", 0, register(url, f"{topic}-value", '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}', "JSON"))
    names = ["account", "at", "cents", "fee"]
    return lambda payment: prefix + json.dumps({name: payment[name] for name in names}).encode()


def write(servers, url, topic, kind, compression, seed, count):
    from confluent_kafka import Producer
    writer = {
        "json": lambda: json_writer(url, topic, False),
        "framed-json": lambda: json_writer(url, topic, True),
        "avro": lambda: avro_writer(url, topic, False),
        "evolving-avro": lambda: avro_writer(url, topic, True),
        "protobuf": lambda: protobuf_writer(url, topic),
    }[kind]()
    client = json.loads(servers) if servers.startswith("{") else {"bootstrap.servers": servers}
    producer = Producer(client | {"compression.type": compression, "linger.ms": 20})
    totals = {}
    for number, payment in enumerate(payments(int(seed), int(count))):
        message = writer(payment)
        producer.produce(topic, message, partition=number % 2, timestamp=payment["at"])
        producer.poll(0)
        total = totals.setdefault((payment["at"] // WINDOW_MS * WINDOW_MS, payment["account"]), [0, 0, 0])
        for at, value in enumerate([1, payment["cents"], payment["fee"] or 0]):
            total[at] += value
    assert producer.flush(60) == 0
    print(json.dumps([[*key, *total] for key, total in sorted(totals.items())]))


def send(servers, topic, *messages):
    from confluent_kafka import Producer
    producer = Producer({"bootstrap.servers": servers})
    for message in messages:
        producer.produce(topic, bytes.fromhex(message), partition=0, timestamp=1_700_000_000_000)
    assert producer.flush(60) == 0


def read_avro(url, path):
    import fastavro
    schemas = {}
    with open(path) as lines:
        for line in lines:
            message = bytes.fromhex(line)
            magic, number = struct.unpack(">bI", message[:5])
            assert magic == 0, message
            if number not in schemas:
                schemas[number] = fastavro.parse_schema(json.loads(request(url, f"/schemas/ids/{number}")["schema"]))
            datum = io.BytesIO(message[5:])
            value = fastavro.schemaless_reader(datum, schemas[number], None)
            assert not datum.read(), "bytes are left"
            print(json.dumps(value, default=str))


def orders(servers, url, orders_topic, customers_topic, seed, count, rate):
    """Writes customers and orders with changes and deletes, and prints the table of enriched orders that they come to."""
    import fastavro
    import random
    import time
    from confluent_kafka import Producer
    order_schema = {"type": "record", "name": "Order", "fields": [
        {"name": "note", "type": "string"}, {"name": "customer", "type": "long"}, {"name": "cents", "type": "int"},
        {"name": "at_ms", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}
    customer_schema = {"type": "record", "name": "Customer", "fields": [
        {"name": "name", "type": "string"}, {"name": "tier", "type": ["null", "string"]}]}
    writers = {}
    for topic, schema in [(orders_topic, order_schema), (customers_topic, customer_schema)]:
        writers[topic] = (register(url, f"{topic}-value", json.dumps(schema)), fastavro.parse_schema(schema))
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "compression.type": "lz4"})
    tables = {orders_topic: {}, customers_topic: {}}

    def change(topic, key, row):
        if row is None:
            tables[topic].pop(key, None)
            value = None
        else:
            tables[topic][key] = row
            number, schema = writers[topic]
            datum = io.BytesIO()
            fastavro.schemaless_writer(datum, schema, row)
            value = struct.pack(">bI", 0, number) + datum.getvalue()
        producer.produce(topic, value, key=str(key))
        producer.poll(0)

    rng = random.Random(int(seed))
    customer = lambda: {"name": f"name-{rng.randrange(1000)}", "tier": rng.choice([None, "gold", "silver"])}
    # Some customers come late, and none is number 0.
    for key in range(1, 80):
        change(customers_topic, key, customer())
    for number in range(int(count)):
        if float(rate) > 0 and number % 100 == 0:
            producer.flush(60)
            time.sleep(100 / float(rate))
        dice = rng.random()
        if dice < 0.05:
            change(customers_topic, rng.randrange(1, 100), customer() if dice < 0.04 else None)
        else:
            order = {"note": "x" * rng.randrange(20), "customer": rng.randrange(100), "cents": rng.randrange(100000),
                     "at_ms": 1_700_000_000_000 + rng.randrange(10**9)}
            change(orders_topic, rng.randrange(int(count) // 3), order if dice < 0.9 else None)
    assert producer.flush(60) == 0
    enriched = {}
    for key, order in tables[orders_topic].items():
        customer = tables[customers_topic].get(order["customer"])
        if customer is not None:
            enriched[str(key)] = {"order": key, "customer": order["customer"], "cents": order["cents"],
                                  "at_ms": order["at_ms"], **customer}
    print(json.dumps(enriched, sort_keys=True))


def settle(servers, topic, partitions):
    """Waits until no transaction is open on a topic, for 10 s at most: markers of transactions that are committed may come late."""
    from confluent_kafka import Consumer, TopicPartition
    readers = [Consumer({"bootstrap.servers": servers, "group.id": "ends", "isolation.level": level})
               for level in ("read_committed", "read_uncommitted")]
    ends = lambda reader: [reader.get_watermark_offsets(TopicPartition(topic, id), 30)[1] for id in partitions]
    limit = time.monotonic() + 10
    while ends(readers[0]) != ends(readers[1]) and time.monotonic() < limit:
        time.sleep(0.02)
    for reader in readers:
        reader.close()


def read_table(servers, url, topic):
    """Prints the last committed value of each key of a topic, but for those that are deleted."""
    import fastavro
    from confluent_kafka import Consumer, TopicPartition
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "table", "enable.partition.eof": True,
                         "isolation.level": "read_committed", "enable.auto.commit": False})
    partitions = list(consumer.list_topics(topic, 30).topics[topic].partitions)
    settle(servers, topic, partitions)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    schemas, table, ended = {}, {}, set()
    while len(ended) < len(partitions):
        message = consumer.poll(30)
        assert message is not None, "no message within 30 s"
        if message.error():
            assert message.error().name() == "_PARTITION_EOF", message.error()
            ended.add(message.partition())
            continue
        key, value = message.key().decode(), message.value()
        if value is None:
            assert key in table, f"{key} is deleted twice"
            del table[key]
            continue
        magic, number = struct.unpack(">bI", value[:5])
        assert magic == 0, value
        if number not in schemas:
            schemas[number] = fastavro.parse_schema(json.loads(request(url, f"/schemas/ids/{number}")["schema"]))
        row = fastavro.schemaless_reader(io.BytesIO(value[5:]), schemas[number], None)
        assert table.get(key) != row, f"{key} is set twice to {row}"
        table[key] = row
    consumer.close()
    print(json.dumps(table, sort_keys=True))


def require_backward(url, subject):
    request(url, f"/config/{subject}", {"compatibility": "BACKWARD"}, "PUT")


if __name__ == "__main__":
    commands = [write, send, read_avro, require_backward, orders, read_table]
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
