"""A Lambda of our own, for machines that are not Lambda: AWS's runtime client, served by us.

`service` puts it together. `host` keeps an `environment` up: extension processes and runtime
clients (`ric`), which speak to `extensions_api` and `runtime_api`. Events come in by `invoke_api`,
`async_invocations` and `sqs_poller`, and meet in `invocations`.
"""
