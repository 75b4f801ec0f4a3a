"""A stand-in for the program helm, for tests: the commands that FabEdge's documents use, carried out by Helm's own engine.

It has no other commands and options. What it prints is worded as Helm words it where documents show it.
"""

import argparse
import json
import pathlib
import re
import sys
import tempfile
from datetime import datetime

import helm_python as helm

INFO = 1
UNITS = {"h": 3600, "m": 60, "s": 1}
STILL_IN_USE = "cannot re-use a name that is still in use"


def seconds(text):
    """A duration as Go writes it."""
    if not re.fullmatch(r"(\d+[hms])+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 5m0s")
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text))


def merge(base, more):
    """Values over values; a null stays, for it removes a default of the chart."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def values(args):
    found = {}
    for path in args.values:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        merge(found, helm.values_from_yaml(text))
    for parse, expressions in [
        (helm.parse_set_string, args.set),
        (helm.parse_set_string_values, args.set_string),
        (helm.parse_set_file, args.set_file),
    ]:
        for expression in expressions:
            merge(found, parse(expression))
    return found


def config(args):
    return helm.Config(namespace=args.namespace, kubeconfig_path=args.kubeconfig, kube_context=args.kube_context)


def wait(args):
    """Hooks are always waited for; everything else when that is asked for."""
    return "watcher" if args.wait else "hookOnly"


def when(release):
    return datetime.fromisoformat(release["deployed_at"].replace("Z", "+00:00")).ctime()


def show(release, cluster):
    print(f"NAME: {release['name']}")
    print(f"LAST DEPLOYED: {when(release)}")
    print(f"NAMESPACE: {release['namespace']}")
    print(f"STATUS: {release['status']}")
    print(f"REVISION: {release['revision']}")
    print(f"DESCRIPTION: {cluster.get_all(release['name'])['info'].get('description', '')}")
    if release.get("notes"):
        print(f"NOTES:\n{release['notes'].strip()}")


def install(args):
    with config(args) as cluster:
        try:
            release = cluster.install(
                args.chart,
                args.name,
                values(args),
                namespace=args.namespace,
                create_namespace=args.create_namespace,
                rollback_on_failure=args.atomic,
                timeout=args.timeout,
                wait=wait(args),
            )
        except helm.HelmError as error:
            raise SystemExit(f"Error: {STILL_IN_USE if 'still in use' in str(error) else error}") from error
        show(release, cluster)


def upgrade(args):
    with config(args) as cluster:
        if args.install and not exists(cluster, args.name):
            print(f'Release "{args.name}" does not exist. Installing it now.')
            install(args)
            return
        release = cluster.upgrade(
            args.chart,
            args.name,
            values(args) or None,
            namespace=args.namespace,
            reset_values=args.reset_values,
            reuse_values=args.reuse_values,
            rollback_on_failure=args.atomic,
            timeout=args.timeout,
            wait=wait(args),
        )
        print(f'Release "{args.name}" has been upgraded. Happy Helming!')
        show(release, cluster)


def exists(cluster, name):
    try:
        return bool(cluster.history(name))
    except helm.HelmNotFoundError:
        return False


def uninstall(args):
    with config(args) as cluster:
        done = cluster.uninstall(
            args.name, keep_history=args.keep_history, timeout=args.timeout, wait=wait(args)
        )
    if done.get("info"):
        print(done["info"].strip())
    print(f'release "{args.name}" uninstalled')


def rollback(args):
    with config(args) as cluster:
        cluster.rollback(args.name, version=args.revision, timeout=args.timeout, wait=wait(args))
    print("Rollback was a success! Happy Helming!")


def status(args):
    with config(args) as cluster:
        show(cluster.status(args.name), cluster)


def as_yaml(values):
    """Values as Helm prints them: by a chart that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "Chart.yaml").write_text("apiVersion: v2\nname: print\nversion: 0.0.0\n", encoding="utf-8")
        (path / "templates").mkdir()
        (path / "templates/values.yaml").write_text("{{ toYaml .Values.printed }}", encoding="utf-8")
        with helm.Chart.load(path) as chart:
            return chart.render({"printed": values})["print/templates/values.yaml"]


def get(args):
    with config(args) as cluster:
        if args.what == "values":
            found = cluster.get_values(args.name, all_values=args.all)
            if args.output == "table":
                print("COMPUTED VALUES:" if args.all else "USER-SUPPLIED VALUES:")
            print(json.dumps(found) if args.output == "json" else as_yaml(found))
        elif args.what == "manifest":
            print(cluster.status(args.name)["manifest"].strip())
        else:
            print(f"NOTES:\n{cluster.status(args.name)['notes'].strip()}")


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("\t".join(cell.ljust(width) for cell, width in zip(row, widths)))


def chart_of(release):
    return f"{release['chart_name']}-{release['chart_version']}"


def releases(args):
    with config(args) as cluster:
        found = cluster.list(all_namespaces=args.all_namespaces)
        if args.short:
            for release in found:
                print(release["name"])
            return
        rows = [("NAME", "NAMESPACE", "REVISION", "UPDATED", "STATUS", "CHART", "APP VERSION")]
        for release in found:
            rows.append(
                (
                    release["name"],
                    release["namespace"],
                    str(release["revision"]),
                    when(release),
                    release["status"],
                    chart_of(release),
                    release["app_version"],
                )
            )
        table(rows)


def history(args):
    with config(args) as cluster:
        rows = [("REVISION", "UPDATED", "STATUS", "CHART", "APP VERSION")]
        for release in cluster.history(args.name):
            rows.append(
                (
                    str(release["revision"]),
                    when(release),
                    release["status"],
                    chart_of(release),
                    release["app_version"],
                )
            )
        table(rows)


def template(args):
    *name, path = args.words
    given = values(args)
    with helm.Chart.load(path) as chart:
        chart.validate_schema(given)
        rendered = chart.render(given, name=name[0] if name else "release-name", namespace=args.namespace)
        if args.include_crds:
            rendered.update({crd["filename"]: crd["data"] for crd in chart.crds})
    for file, text in sorted(rendered.items()):
        if text.strip() and not file.endswith("NOTES.txt"):
            print(f"---\n# Source: {file}\n{text.strip()}")


def show_chart(args):
    print(helm.show(args.chart, output_format=args.part).strip())


def lint(args):
    report = helm.lint(args.chart, values(args), strict=args.strict, namespace=args.namespace)
    print(f"==> Linting {args.chart}")
    words = ["UNKNOWN", "INFO", "WARNING", "ERROR"]
    for message in report["messages"]:
        print(f"[{words[message['severity']]}] {message['path']}: {message['error']}")
    worst = max((message["severity"] for message in report["messages"]), default=0)
    failed = bool(report["errors"]) or worst > (INFO if args.strict else INFO + 1)
    text = f"1 chart(s) linted, {int(failed)} chart(s) failed"
    if failed:
        raise SystemExit(f"\nError: {text}")
    print(f"\n{text}")


def version(_args):
    print(f"{helm.helm_sdk_version()} (a stand-in for tests)")


def parser(command):
    """The options of a command."""
    run, words = COMMANDS[command]
    options = argparse.ArgumentParser(prog=f"helm {command}", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = options.add_argument
    add("-n", "--namespace", default="default")
    add("--kubeconfig")
    add("--kube-context")
    for word in words:
        if word == "name":
            add("name")
        elif word == "chart":
            add("chart")
        elif word == "values":
            add("-f", "--values", action="append", default=[], metavar="FILE")
            add("--set", action="append", default=[], metavar="KEY=VALUE")
            add("--set-string", action="append", default=[], metavar="KEY=VALUE")
            add("--set-file", action="append", default=[], metavar="KEY=FILE")
        elif word == "wait":
            add("--wait", action="store_true")
            add("--timeout", type=seconds, default=300, metavar="DURATION")
        elif word == "words":
            add("words", nargs="+", metavar="[NAME] CHART")
        elif word == "what":
            add("what", choices=["values", "manifest", "notes"])
        elif word == "part":
            add("part", choices=["chart", "crds", "values"])
        elif word == "output":
            add("-o", "--output", choices=["table", "json", "yaml"], default="table")
        elif word == "revision":
            add("revision", nargs="?", type=int)
        else:
            add(*word.split(), action="store_true")
    options.set_defaults(run=run)
    return options


COMMANDS = {
    "install": (install, ["name", "chart", "values", "wait", "--create-namespace", "--atomic"]),
    "upgrade": (
        upgrade,
        [
            "name",
            "chart",
            "values",
            "wait",
            "-i --install",
            "--create-namespace",
            "--atomic",
            "--reset-values",
            "--reuse-values",
        ],
    ),
    "uninstall": (uninstall, ["name", "wait", "--keep-history"]),
    "rollback": (rollback, ["name", "revision", "wait"]),
    "list": (releases, ["-A --all-namespaces", "-q --short"]),
    "status": (status, ["name"]),
    "history": (history, ["name"]),
    "get": (get, ["what", "name", "output", "-a --all"]),
    "template": (template, ["words", "values", "--include-crds"]),
    "show": (show_chart, ["part", "chart"]),
    "lint": (lint, ["chart", "values", "--strict"]),
    "version": (version, []),
}


def main(words):
    command = {"ls": "list"}.get(words[0], words[0]) if words else "--help"
    if command in ("--help", "-h", "help"):
        print(f"{__doc__}\ncommands: {', '.join(COMMANDS)}; `helm COMMAND --help` lists a command's options")
        return
    if command not in COMMANDS:
        raise SystemExit(f'Error: unknown command "{command}" for "helm"')
    args = parser(command).parse_intermixed_args(words[1:])
    try:
        args.run(args)
    except (helm.HelmError, OSError) as error:
        raise SystemExit(f"Error: {error}") from error


main(sys.argv[1:])
