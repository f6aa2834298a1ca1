"""A Lambda of our own, for machines that are not Lambda: AWS's runtime client, served by us.

`host` invokes the handler, `runtime_api` speaks Lambda's HTTP protocol, `ric` says what AWS's
runtime interface client (RIC) is started with, `child` and `leash` keep processes on a short lead.
"""
