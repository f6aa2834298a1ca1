"""What a handler looks like to the runtime client when its module cannot be imported."""

print("about to fail", flush=True)

raise RuntimeError("not importable")
