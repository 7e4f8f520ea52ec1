"""Ollama's own library against a server: what it hears, as one JSON value on stdout.

usage: ollama_chat.py URL stream MODEL | whole MODEL | list     (the API key: RDEV_TOKEN)
"""

import json
import os
import sys

import httpx
import ollama


def stream(client, model):
    chunks = list(client.chat(model=model, messages=MESSAGES, stream=True))
    return {"chunks": [chunk.message.content for chunk in chunks], "done": chunks[-1].done}


def whole(client, model):
    answer = client.chat(model=model, messages=MESSAGES)
    return {
        "content": answer.message.content,
        "role": answer.message.role,
        "done": answer.done,
        "done_reason": answer.done_reason,
    }


def models(client):
    return {"models": [model.model for model in client.list().models]}


MESSAGES = [{"role": "user", "content": "hi"}]
WAYS = {"stream": stream, "whole": whole, "list": models}


def main(url, way, *rest):
    token = os.environ.get("RDEV_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = ollama.Client(host=url, headers=headers, timeout=20)
    try:
        said = WAYS[way](client, *rest)
    except ollama.ResponseError as error:
        said = {"error": error.error, "status": error.status_code}
    except httpx.HTTPError as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said))


main(*sys.argv[1:])
