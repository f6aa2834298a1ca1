"""The HTTP API: one ASGI application for every front door.

`application` makes it of a store of jobs and a `dispatcher`, which knows how jobs are run: on a
host (runtime/lambda_host/host_dispatcher.py), in the function itself (`lambda_front`), or through a
queue (`sqs_dispatcher`). No route knows which. It is imported with the first HTTP call only: its
framework takes as long to import as the rest of the handler.
"""
