#!/bin/sh
# Runs the two images of `make image` with podman, as root: read-only, without a network, as another
# user, under `sam local invoke`, and stops them. Needs podman, and `make .venv/.installed-tests` and
# `make .venv-sam/.installed` for the local S3 and SAM CLI. It ends with status 1 at the first step
# that fails.
#
# It removes its containers and the images at the end. KEEP=1 keeps the images.
set -eu
cd "$(dirname "$0")/.."
image=docker.io/library/lambda-comfyui:latest
host=docker.io/library/lambda-comfyui-host:latest
name=lambda-comfyui-test-$$
folder=$(mktemp -d)
s3="" service=""

clean_up() {
    for process in $s3 $service; do kill "$process" 2>/dev/null || true; done
    for container in $(podman ps --all --quiet --filter "name=$name"); do
        podman rm --force --time 5 "$container" >/dev/null || true
    done
    podman rmi --force docker.io/library/lambda-comfyui:rapid-x86_64 >/dev/null 2>&1 || true
    [ "${KEEP:-}" = 1 ] || podman rmi --force "$image" "$host" >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

say() { echo "== $*"; }
fail() { echo "failed: $*" >&2; exit 1; }

# The documented small workflow.
cat >"$folder/event.json" <<'JSON'
{"input": {"request_id": "image-test", "workflow_json": {
  "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
  "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}}}
JSON

# post CONTAINER URL: send the event from inside the container, which has no network.
post() {
    podman exec --interactive "$1" python -c '
import sys, time, urllib.error, urllib.request
body, until = sys.stdin.buffer.read(), time.monotonic() + 180
while True:
    try:
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers), timeout=300) as got:
            sys.exit(print(got.read().decode()))
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code} {error.read().decode()}")
    except OSError:
        if time.monotonic() > until:
            raise
        time.sleep(0.5)
' "$2" <"$folder/event.json"
}

# check_completed FILE: the response of a job that ended well, as one line.
check_completed() {
    python3 - "$1" <<'PYTHON' || fail "the job did not complete: $(cat "$1")"
import json, sys
text = open(sys.argv[1]).read()
answer = json.loads(text[text.index('{"id"'):] if '{"id"' in text else text)
print(answer["status"], answer["output"][0]["filename"], answer["output"][0].get("url", "")[:60])
sys.exit(answer["status"] != "completed")
PYTHON
}

say "layers"
for one in "$image" "$host"; do
    podman image inspect --format '{{.RepoTags}} {{.Size}} bytes' "$one"
    podman history --format '{{.Size}}  {{.CreatedBy}}' "$one" | grep -v '^0 B' | cut -c 1-110
done

say "contents"
for one in "$image" "$host"; do
    podman run --rm --network none --read-only --user 0 --entrypoint sh "$one" -c '
        set -e
        for tool in pip pip3 gcc cc g++ make git; do
            ! command -v $tool >/dev/null || { echo "$tool is in the image"; exit 1; }
        done
        found=$(find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp \) -prune -o \
            \( -name pip -path "*/site-packages/*" -o -path "*/.cache" -o -name "*.whl" -o -name .git \) -print)
        [ -z "$found" ] || { echo "$found"; exit 1; }
        writable=$(find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp \
            -o -path /run \) -prune -o \( -type f -o -type d \) -perm -o+w -print)
        [ -z "$writable" ] || { echo "world-writable: $writable"; exit 1; }
        [ -e /var/task/handler/__pycache__/app.cpython-313.pyc ] || { echo "no bytecode"; exit 1; }
        [ -e /opt/comfyui/ComfyUI/__pycache__/nodes.cpython-313.pyc ] || { echo "no bytecode of ComfyUI"; exit 1; }
        if touch /opt/x 2>/dev/null; then echo "/opt can be written"; exit 1; fi
    ' || fail "contents of $one"
    echo "$one: no pip, compiler, cache or world-writable file; bytecode is there"
done

say "host: read-only, /tmp alone, user 12345, no network"
podman run --detach --name "$name-host" --network none --read-only --tmpfs /tmp:mode=1777 \
    --cap-drop all --security-opt no-new-privileges --user 12345:12345 "$host" >/dev/null
post "$name-host" http://127.0.0.1:18288/generate/sync >"$folder/host.json" ||
    fail "$(cat "$folder/host.json"; podman logs --tail 20 "$name-host" 2>&1)"
check_completed "$folder/host.json"
started=$(date +%s)
podman stop --time 40 "$name-host" >/dev/null
status=$(podman inspect --format '{{.State.ExitCode}}' "$name-host")
echo "SIGTERM: status $status after $(($(date +%s) - started)) s"
[ "$status" = 0 ] || fail "the host's exit status is $status"

say "lambda: the emulator in the image, read-only, /tmp alone, no network"
podman run --detach --name "$name-lambda" --network none --read-only --tmpfs /tmp:mode=1777 \
    --env AWS_LAMBDA_FUNCTION_TIMEOUT=300 "$image" >/dev/null
post "$name-lambda" http://127.0.0.1:8080/2015-03-31/functions/function/invocations \
    >"$folder/lambda.json" || fail "$(podman logs --tail 20 "$name-lambda" 2>&1)"
check_completed "$folder/lambda.json"
started=$(date +%s)
podman stop --time 40 "$name-lambda" >/dev/null
status=$(podman inspect --format '{{.State.ExitCode}}' "$name-lambda")
took=$(($(date +%s) - started))
echo "SIGTERM: status $status after $took s"
[ "$took" -lt 30 ] || fail "the emulator did not stop in time"

say "sam local invoke, with template.yaml and a local S3"
podman system service --time=0 "unix://$folder/podman.sock" >"$folder/service.log" 2>&1 &
service=$!
# The bridge's address exists while a container uses the bridge.
podman run --detach --name "$name-bridge" --network podman --entrypoint sleep "$host" 3600 >/dev/null
gateway=$(podman network inspect podman --format '{{range .Subnets}}{{.Gateway}}{{end}}')
.venv/bin/moto_server -H "$gateway" -p 9100 >"$folder/s3.log" 2>&1 &
s3=$!
for _ in $(seq 60); do
    curl --silent --fail --noproxy '*' --request PUT "http://$gateway:9100/results" >/dev/null && break
    sleep 0.5
done
python3 - "$folder" "$gateway" <<'PYTHON'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
event = json.loads((folder / "event.json").read_text())
event["input"]["s3"] = {"endpoint_url": f"http://{sys.argv[2]}:9100", "bucket_name": "results",
    "access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
(folder / "sam.json").write_text(json.dumps(event))
(folder / "env.json").write_text(json.dumps({"ComfyUI": {"JOBS_TABLE": None, "JOBS_QUEUE_URL": None,
    "DEAD_LETTER_QUEUE_URL": None, "HOME": "/tmp"}}))
PYTHON
DOCKER_HOST="unix://$folder/podman.sock" SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=us-east-1 \
    SAM_CLI_CONTAINER_CONNECTION_TIMEOUT=180 .venv-sam/bin/sam local invoke ComfyUI -t template.yaml \
    --skip-pull-image -e "$folder/sam.json" --env-vars "$folder/env.json" --parameter-overrides \
    ImageUri=lambda-comfyui:latest OutboundAllow="$gateway" >"$folder/sam.out" 2>"$folder/sam.log" ||
    fail "$(tail -40 "$folder/sam.log")"
check_completed "$folder/sam.out"

say "passed"
