"""`lambda-comfyui start-lambda`: the invoke endpoint alone, as `sam local start-lambda` has it.

https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/using-sam-cli-local-start-lambda.html
"""

import argparse
from dataclasses import replace

from handler.settings import Settings
from runtime.commands import serve
from runtime.commands.listening import is_loopback
from runtime.commands.local_development import allow_loopback
from runtime.sam import environment

# The port of `sam local start-lambda`.
PORT = 3001


def add_arguments(parser: argparse.ArgumentParser) -> None:
    serve.add_endpoint_arguments(parser, default_port=str(PORT))
    environment.add_arguments(parser)
    parser.set_defaults(port=PORT, queue=None, batch_size=None, no_api=True, api_host=None)
    parser.set_defaults(api_port=None)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """As `serve`, but without a queue, also where QUEUE_URL is set.

    Requests may name loopback if the endpoint listens on loopback.
    """
    if is_loopback(args.host or settings.serve_address):
        args.environ = allow_loopback(args.environ)
    return serve.run(args, replace(settings, queue_url=""))
