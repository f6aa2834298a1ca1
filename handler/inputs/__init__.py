"""Files that a workflow takes as input by URL, as a data: URI, or from a bucket.

`references` finds them in a workflow, `sources` reads one, `input_folder` stores it once for all
that want it, and `job_inputs` does that for a job. docs/inputs.md is the page for users.
"""
