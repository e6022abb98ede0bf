#!/usr/bin/env bash
# The main job by curl alone: token → dataset → upload → run → socket events → model version → alias → prediction.
# Usage: DLP_ADMIN_PASSWORD=… docs/tour.sh [address]     (python3 only picks fields out of JSON answers)
set -euo pipefail

address=${1:-http://localhost:8000}
api=$address/api/v1
username=${DLP_ADMIN_USERNAME:-admin}
password=${DLP_ADMIN_PASSWORD:?set it to the password that the first start printed}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

field() { python3 -c "import json, sys; print(eval('answer$1', {'answer': json.load(sys.stdin)}))"; }
say() { printf '\n== %s\n' "$*"; }
call() { curl --fail-with-body --silent --show-error -H "Authorization: Bearer $token" "$@"; }

say "1. A token"
token=$(curl --fail-with-body --silent --show-error "$api/auth/token" -H 'Content-Type: application/json' \
    -d "{\"username\": \"$username\", \"password\": \"$password\"}" | field '["access"]')
echo "${token:0:20}…"

say "2. A dataset"
python3 - "$folder/iris-like.csv" <<'PYTHON'
import random, sys
random.seed(7)
with open(sys.argv[1], "w") as out:
    out.write("length,width,colour,kind\n")
    for row in range(300):
        kind = row % 3
        length, width = random.gauss(5 + kind, 0.4), random.gauss(3 - kind / 2, 0.3)
        out.write(f"{length:.2f},{width:.2f},{random.choice(['red', 'blue'])},{'abc'[kind]}\n")
PYTHON
name="tour $(date +%s)"
dataset=$(call "$api/datasets" -H 'Content-Type: application/json' -H "Idempotency-Key: $name" \
    -d "{\"name\": \"$name\"}" | field '["id"]')
echo "$dataset"

say "3. Upload a file, and wait until it is ingested"
number=$(call "$api/datasets/$dataset/versions" -F "file=@$folder/iris-like.csv;type=text/csv" | field '["number"]')
while state=$(call "$api/datasets/$dataset/versions/$number" | field '["state"]'); [[ $state == queued || $state == running ]]; do
    sleep 0.2
done
version=$(call "$api/datasets/$dataset/versions/$number" | field '["id"]')
echo "version $number is $state"
call "$api/datasets/$dataset/versions/$number/rows?limit=2"; echo

say "4. Train"
run=$(call "$api/runs" -H 'Content-Type: application/json' \
    -d "{\"dataset_version\": \"$version\", \"task\": \"classification\", \"target\": \"kind\", \"config\": {\"seed\": 1}}" \
    | field '["id"]')
echo "$run"

say "5. Watch it over the WebSocket (a few seconds of it)"
curl --silent --no-buffer --http1.1 --max-time 4 "$address/ws/runs/$run?after=0" -H "Authorization: Bearer $token" \
    -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
    -H 'Sec-WebSocket-Key: dG91ciBvZiB0aGUgcGxhdA==' | LC_ALL=C tr -cd '[:print:]\n' \
    | grep -o '{"type":"[a-z]*","sequence":[0-9]*' | head -8 || true

say "6. The result"
while state=$(call "$api/runs/$run" | field '["state"]'); [[ $state != succeeded ]]; do
    [[ $state == failed || $state == cancelled ]] && { call "$api/runs/$run" | field '["error"]'; exit 1; }
    sleep 0.5
done
call "$api/runs/$run" | field '["metrics"]'
model_version=$(call "$api/runs/$run" | field '["output_version"]')
model=$(call "$api/model-versions/$model_version" | field '["model"]')
echo "model $model, version $model_version"

say "7. Make it production"
call -X PUT "$api/models/$model/refs/alias/production" -H 'Content-Type: application/json' \
    -d "{\"version\": \"$model_version\", \"reason\": \"the tour\"}"; echo
call "$api/models/$model/refs/log"; echo

say "8. Predict, by alias"
call "$api/models/$model/refs/alias/production/predict" -H 'Content-Type: application/json' \
    -d '{"instances": [{"length": 5.1, "width": 3.0, "colour": "red"}, {"length": 7.0, "width": 2.1, "colour": "blue"}]}'
echo
