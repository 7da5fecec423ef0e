#!/usr/bin/env bash
# Runs a flow step by step from its plan, as an orchestrator would: it knows the plan's three commands and their JSON
# answers, and nothing else. A task waits until every task that was ready before it has finished.
#
#   orchestrate.sh PLAN.json PARAMETERS_JSON PYTHON
#
# PYTHON only reads JSON here.
set -euo pipefail
plan=$1 parameters=$2 python=$3

# command NAME KEY=VALUE...: fills a command template of the plan and runs it.
command_of() {
    local name=$1
    shift
    local words=()
    mapfile -d '' words < <("$python" -c '
import json, sys
plan = json.load(open(sys.argv[1]))
values = dict(pair.split("=", 1) for pair in sys.argv[3:])
for word in plan[sys.argv[2]]:
    sys.stdout.write(word.format(**values) + "\0")
' "$plan" "$name" "$@")
    "${words[@]}"
}

# field JSON NAME: prints a field of an object.
field() {
    "$python" -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$1" "$2"
}

# tasks JSON: prints the tasks that follow, one "step task_id" a line.
tasks() {
    "$python" -c '
import json, sys
for task in json.loads(sys.argv[1])["next"]:
    print(task["step"], task["task_id"])
' "$1"
}

begun=$(command_of begin "parameters=$parameters")
run_id=$(field "$begun" run_id)
echo "run $run_id" >&2

wave=$(tasks "$begun")
while [ -n "$wave" ]; do
    next=""
    while read -r step task_id; do
        attempt=0
        until answer=$(command_of step "run_id=$run_id" "step=$step" "task_id=$task_id" "attempt=$attempt"); do
            attempt=$((attempt + 1))
            if [ "$attempt" -gt 2 ]; then
                command_of finish "run_id=$run_id" "status=failed" >/dev/null
                echo "$run_id"
                exit 1
            fi
        done
        next+=$(tasks "$answer")$'\n'
    done <<<"$wave"
    # Several branches name the same join: it runs once, after all of them.
    wave=$(printf '%s' "$next" | sed '/^$/d' | awk '!seen[$0]++')
done

command_of finish "run_id=$run_id" "status=succeeded" >/dev/null
echo "$run_id"
