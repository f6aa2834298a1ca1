"""A Lambda host for machines that are not Lambda: it serves AWS's own runtime client.

`service` assembles the parts. `host` keeps an `environment` running: extension processes, and
runtime clients (`runtime_client`), which call `extensions_api` and `runtime_api`. Events come from
`invoke_api`, `async_invocations` and `sqs_poller`; all of them go through `invocations`.
"""
