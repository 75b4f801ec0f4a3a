"""Helm's own engine for tests: a request in JSON on each line of stdin, its answer on a line of stdout.

A request names a chart and holds values as YAML. The answer has `manifests` (file -> text) or `error`, which is what
`helm template` would end with, and `lint`, what `helm lint --strict` would complain of.
"""

import json
import sys

import helm_python as helm

INFO = 1


def lint(request, values):
    report = helm.lint(
        request["chart"], values, strict=True, namespace=request["namespace"], kube_version=request["kubernetes"]
    )
    found = [f"{message['path']}: {message['error']}" for message in report["messages"] if message["severity"] > INFO]
    return found + report["errors"]


def answer(request):
    try:
        values = helm.values_from_yaml(request["values"])
        with helm.Chart.load(request["chart"]) as chart:
            chart.validate_schema(values)
            manifests = chart.render(values, name="fabedge", namespace=request["namespace"])
        return {"manifests": manifests, "lint": lint(request, values)}
    except helm.HelmError as error:
        return {"error": str(error)}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
