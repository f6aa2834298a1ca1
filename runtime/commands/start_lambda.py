"""`lambda-comfyui start-lambda`: the invoke endpoint alone, as `sam local start-lambda` has it.

https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/using-sam-cli-local-start-lambda.html
"""

import argparse
from dataclasses import replace

from handler.settings import Settings
from runtime.commands import serve
from runtime.sam import environment

# The port of `sam local start-lambda`.
PORT = 3001


def add_arguments(parser: argparse.ArgumentParser) -> None:
    serve.add_endpoint_arguments(parser)
    environment.add_arguments(parser)
    parser.set_defaults(port=PORT, queue=None, batch_size=None)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """As `serve`, but without a queue, also where QUEUE_URL is set."""
    return serve.run(args, replace(settings, queue_url=""))
