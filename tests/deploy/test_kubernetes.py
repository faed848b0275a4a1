"""Renders kustomizations and chart with kubectl and helm. Checks the result against Kubernetes' schemas and the
rules of its admission, and starts the gateway with it."""

import json
import re
import shutil
import tomllib
from base64 import b64encode

import pytest
import yaml

from empty_root import ask
from files import DEPLOY, ROOT, run, tool
from manifests import CHART, RENDERED, Manifests, rendered

PACKAGE = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
SECONDS = re.compile(r"(\d+)s")
MEBIBYTES = re.compile(r"(\d+)Mi")


@pytest.fixture(params=RENDERED)
def manifests(request):
    return Manifests(request.param)


@pytest.fixture(params=[name for name in RENDERED if name != "sidecar"])
def endpoint(request):
    return Manifests(request.param)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", RENDERED)
def test_every_field_is_in_kubernetes_schemas(name, version, tmp_path):
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered(name))
    said = run(tool("kubernetes-validate"), "--strict", "-k", version, file)
    checked = [line for line in said.splitlines() if " passed for resource " in line]
    own = [document for document in Manifests(name).all if "coreos.com" not in document["apiVersion"]]
    assert len(checked) == len(own) >= 2, said


def test_pods_pass_the_restricted_standard(manifests):
    pod = manifests.template["spec"]
    # A sidecar must set everything on its container, since the pod belongs to the application.
    security = {**pod.get("securityContext", {}), **manifests.gateway["securityContext"]}
    assert security["runAsNonRoot"] and security["runAsUser"] == security["runAsGroup"] == 65532
    assert not security["allowPrivilegeEscalation"] and security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "privileged" not in security
    assert all("hostPort" not in port for port in manifests.gateway.get("ports", []))
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all({"configMap", "secret"} & set(volume) for volume in pod["volumes"])


def test_no_variables_are_made_of_service_names(manifests):
    assert manifests.template["spec"]["enableServiceLinks"] is False


def test_the_endpoint_needs_no_access_to_the_cluster(endpoint):
    assert endpoint.template["spec"]["automountServiceAccountToken"] is False
    assert endpoint.one("ServiceAccount")["automountServiceAccountToken"] is False
    assert endpoint.one("ServiceAccount")["metadata"]["name"] == endpoint.template["spec"]["serviceAccountName"]


def test_selectors_find_the_pods(endpoint):
    labels = endpoint.template["metadata"]["labels"].items()
    selectors = [endpoint.one("Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in endpoint.of("Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in endpoint.of("PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in endpoint.of("NetworkPolicy")]
    selectors += [monitor["spec"]["selector"]["matchLabels"] for monitor in endpoint.of("PodMonitor")]
    spread = endpoint.template["spec"]["topologySpreadConstraints"]
    selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread if "labelSelector" in constraint]
    assert len(selectors) >= 2 and all(selector and selector.items() <= labels for selector in selectors)


def test_ports_are_those_the_gateway_opens(endpoint):
    config = tomllib.loads(endpoint.config)
    ports = {port["name"]: port["containerPort"] for port in endpoint.gateway["ports"]}
    assert config["server"]["listen"] == [f"0.0.0.0:{ports['http']}"]
    assert config["admin"]["listen"] == f"0.0.0.0:{ports['admin']}"
    (port,) = endpoint.one("Service")["spec"]["ports"]
    assert port["targetPort"] == "http", "no service exposes the admin plane"
    for policy in endpoint.of("NetworkPolicy"):
        assert [rule["ports"] for rule in policy["spec"]["ingress"]] == [[{"port": "http"}], [{"port": "admin"}]]
        assert all(rule["from"] for rule in policy["spec"]["ingress"]), "a rule without peers would admit every pod"


def test_a_pod_has_time_to_drain(endpoint):
    drain = int(SECONDS.fullmatch(tomllib.loads(endpoint.config)["server"]["drain"])[1])
    sleep = endpoint.gateway.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert endpoint.template["spec"]["terminationGracePeriodSeconds"] > sleep + drain


def test_memory_is_enough_for_the_cache(manifests):
    config = tomllib.loads(manifests.config)
    capacity = int(MEBIBYTES.match(config["cache"]["capacity"])[1])
    answers = 16 * sum(account["concurrency"] for account in config["accounts"].values())
    limits = manifests.gateway["resources"]["limits"]
    assert int(MEBIBYTES.fullmatch(limits["memory"])[1]) >= 1.35 * capacity + 40 + answers
    assert "cpu" not in limits


SECRETS = {
    "insights-gateway": {"api_key": "SK" + "0" * 32, "api_secret": "secret"},
    "insights-gateway-store": {"seal": b64encode(bytes(32)).decode()},
}


def mount(manifests, root):
    """The pod's volumes, as the kubelet would mount them into the gateway's container."""
    volumes = {volume["name"]: volume for volume in manifests.template["spec"]["volumes"]}
    for mounted in manifests.gateway["volumeMounts"]:
        assert mounted["readOnly"] and "subPath" not in mounted
        volume = volumes[mounted["name"]]
        if "configMap" in volume:
            assert volume["configMap"]["name"] == manifests.one("ConfigMap")["metadata"]["name"]
            for name, text in manifests.one("ConfigMap")["data"].items():
                root.write(f"{mounted['mountPath']}/{name}", text)
        else:
            for name, text in SECRETS.get(volume["secret"]["secretName"], {}).items():
                root.write(f"{mounted['mountPath']}/{name}", text)


def test_the_gateway_starts_and_answers_the_probes(manifests, root):
    mount(manifests, root)
    container = manifests.gateway
    checked = root.run("check", *container["args"][1:], environment=manifests.environment)
    assert checked.returncode == 0, checked.stderr
    ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    gateway = root.start(*container["args"], *ports, environment=manifests.environment)
    _, admin = gateway.addresses()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        how = container.get(probe, {})
        if "httpGet" in how:
            assert how["httpGet"]["port"] == "admin"
            assert ask(admin, how["httpGet"]["path"], headers={"Host": "10.1.2.3:9090"})[0] == 200, probe
        elif how:
            binary, *arguments = how["exec"]["command"]
            assert binary == "/insights-gateway"
            assert root.run(*arguments, "--url", f"http://{admin}").returncode == 0, probe
    # The sidecar listens for its own pod only.
    assert ask(admin, "/metrics")[0] == (401 if "token_sha256" in manifests.config else 200)
    assert gateway.stop() == 0


def test_a_configuration_is_checked_before_a_pod_serves(endpoint, root):
    check, gateway = endpoint.check, endpoint.gateway
    for same in ("image", "volumeMounts", "securityContext"):
        assert check[same] == gateway[same]
    assert check.get("env") == gateway.get("env")
    # `kubectl describe pod` shows a failure.
    assert check["terminationMessagePolicy"] == "FallbackToLogsOnError"
    environment = endpoint.environment
    unmounted = root.run(*check["args"], environment=environment)
    assert unmounted.returncode == 64 and "gateway.toml" in unmounted.stderr
    mount(endpoint, root)
    assert root.run(*check["args"], environment=environment).returncode == 0
    config = endpoint.config.replace("capacity", "capactiy")
    root.write("/etc/insights-gateway/gateway.toml", config)
    refused = root.run(*check["args"], environment=environment)
    assert refused.returncode == 64 and "did you mean capacity?" in refused.stderr


def test_the_chart_sets_extra_variables():
    env = Manifests("helm, everything").gateway["env"]
    assert env[0] == {"name": "INSIGHTS_GATEWAY_LOG__FILTER", "value": "debug"}
    assert env[1]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


REACHABLE = '[admin]\nlisten = "0.0.0.0:9090"\n[server]\nlisten = ["unix:/run/x", "[::]:8080"]\n'


@pytest.mark.parametrize(
    "config, options, refusal",
    [
        (REACHABLE.replace("0.0.0.0", "127.0.0.1"), [], "cannot reach the admin plane"),
        (REACHABLE.replace("0.0.0.0", "[::1]"), [], "cannot reach the admin plane"),
        (REACHABLE.replace("9090", "9091"), [], "cannot reach the admin plane"),
        (REACHABLE.replace("[admin]\nlisten", "[log]\nfilter"), [], "cannot reach the admin plane"),
        (REACHABLE.replace("[admin]\nlisten", "admin.listen"), [], None),
        (REACHABLE.replace("[::]", "127.0.0.1"), [], "cannot reach the data plane"),
        (REACHABLE, ["INSIGHTS_GATEWAY_ADMIN__LISTEN", "127.0.0.1:9090"], "cannot reach the admin plane"),
        (REACHABLE, ["INSIGHTS_GATEWAY_SERVER__LISTEN", "127.0.0.1:8080"], "cannot reach the data plane"),
        ("", ["INSIGHTS_GATEWAY_ADMIN__LISTEN", "0.0.0.0:9090"], "cannot reach the data plane"),
        ("[admin\n", [], "config is not TOML"),
        (REACHABLE, [], None),
    ],
)
def test_the_chart_refuses_unreachable_addresses(config, options, refusal, tmp_path):
    (tmp_path / "gateway.toml").write_text(config or "# all by default\n")
    options = ["--set-json=extraEnv=" + json.dumps([dict(zip(("name", "value"), options))])] if options else []
    command = ["helm", "template", "insights", CHART, f"--set-file=config={tmp_path / 'gateway.toml'}", *options]
    if refusal:
        with pytest.raises(AssertionError, match=refusal):
            run(*command)
    else:
        run(*command)


SHARED = (DEPLOY / "kubernetes/team-shared/gateway.toml").read_text()
UNCOUNTED = SHARED.replace("\nreplicas = 2\n", "\n")


def env(key, value):
    return "--set-json=extraEnv=" + json.dumps([{"name": f"INSIGHTS_GATEWAY_SHARED__{key}", **value}])


@pytest.mark.parametrize(
    "config, options, refusal",
    [
        (REACHABLE, ["--set=replicas=2"], "replicas is 2, and config has no shared.url"),
        (REACHABLE + "[shared]\nreplicas = 2\n", ["--set=replicas=2"], "has no shared.url"),
        (REACHABLE + '[shared]\nurl = ""\n', ["--set=replicas=2"], "has no shared.url"),
        (REACHABLE, ["--set=replicas=2", env("URL", {"value": ""})], "has no shared.url"),
        (REACHABLE, ["--set=replicas=2", env("URL", {"value": "redis://h"})], None),
        (REACHABLE, ["--set=replicas=2", env("URL", {"valueFrom": {"secretKeyRef": {"name": "s", "key": "u"}}})], None),
        (REACHABLE, ["--set=replicas=1"], None),
        (SHARED, ["--set=replicas=1"], None),
        (SHARED, ["--set=replicas=2"], None),
        (SHARED, ["--set=replicas=3"], "replicas is 3, and shared.replicas only 2"),
        (SHARED, ["--set=replicas=3", env("REPLICAS", {"value": "2"})], "replicas is 3, and shared.replicas only 2"),
        (SHARED, ["--set=replicas=3", env("REPLICAS", {"value": "3"})], None),
        (SHARED, ["--set=replicas=3", env("REPLICAS", {"valueFrom": {"secretKeyRef": {"name": "s", "key": "n"}}})], None),
        (UNCOUNTED, ["--set=replicas=9"], None),
    ],
)
def test_the_chart_refuses_replicas_that_share_nothing(config, options, refusal, tmp_path):
    (tmp_path / "gateway.toml").write_text(config)
    command = ["helm", "template", "insights", CHART, f"--set-file=config={tmp_path / 'gateway.toml'}", *options]
    if refusal:
        with pytest.raises(AssertionError, match=refusal):
            run(*command)
    else:
        run(*command)


def test_the_chart_tells_the_gateways_how_many_there_are(tmp_path):
    def variables(config, *options):
        (tmp_path / "gateway.toml").write_text(config)
        text = run("helm", "template", "insights", CHART, f"--set-file=config={tmp_path / 'gateway.toml'}", *options)
        return re.findall(r"INSIGHTS_GATEWAY_SHARED__REPLICAS, value: (\S+) }", text)

    assert variables(UNCOUNTED, "--set=replicas=4") == ['"4"'] * 2, "for the check and the gateway"
    # An empty variable counts as unset.
    assert variables(UNCOUNTED, "--set=replicas=4", env("REPLICAS", {"value": ""})) == ['"4"'] * 2
    assert variables(SHARED, "--set=replicas=2") == variables(REACHABLE) == []


def egress_to_the_store(manifests):
    rules = manifests.one("NetworkPolicy")["spec"]["egress"]
    return [rule for rule in rules if {"port": 6379} in rule["ports"]]


def test_pods_that_share_reach_the_store_and_others_do_not():
    for name in ("team", "helm", "helm, everything"):
        assert egress_to_the_store(Manifests(name)) == []
    for name in ("team, shared", "helm, shared"):
        (rule,) = egress_to_the_store(Manifests(name))
        assert rule["to"] == [{"podSelector": {"matchLabels": {"insights-gateway/store": "true"}}}]
        assert rule["ports"] == [{"port": 6379}]


def test_only_pods_that_share_are_several():
    replicas = {name: Manifests(name).one("Deployment")["spec"]["replicas"] for name in RENDERED if name != "sidecar"}
    shares = lambda manifests: "\n[shared]\n" in manifests.config or "INSIGHTS_GATEWAY_SHARED__URL" in manifests.environment
    shared = {name for name in replicas if shares(Manifests(name))}
    assert {name for name, count in replicas.items() if count > 1} == shared == {"team, shared", "helm, shared"}
    assert all(count == 1 for name, count in replicas.items() if name not in shared)
    for name in shared:
        told = Manifests(name).environment.get("INSIGHTS_GATEWAY_SHARED__REPLICAS")
        assert int(told or tomllib.loads(Manifests(name).config)["shared"]["replicas"]) == replicas[name]


def test_pods_restart_when_the_store_has_another_address():
    annotations = Manifests("team, shared").template["metadata"]["annotations"]
    url = tomllib.loads(Manifests("team, shared").config)["shared"]["url"]
    assert annotations["insights-gateway/store"] == url


@pytest.fixture
def documented(tmp_path):
    """A folder with the documented kustomization, next to the sources."""
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "insights-gateway/deploy/kubernetes")
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/deploying.md").read_text(), re.S)
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(example)
    return own


def test_the_documented_component_needs_a_configuration_that_shares(documented):
    (component,) = re.findall(r"Add `(components: .*?)` to", (ROOT / "docs/deploying.md").read_text())
    file = documented / "kustomization.yaml"
    file.write_text(f"{file.read_text()}{component}\n")
    for config in (REACHABLE, SHARED.replace("[shared]", "[share]"), SHARED.replace("\nurl", "\n#url")):
        (documented / "gateway.toml").write_text(config)
        with pytest.raises(AssertionError, match="out of bounds for value"):
            run("kubectl", "kustomize", documented)
    (documented / "gateway.toml").write_text(SHARED)
    found = {document["kind"]: document for document in yaml.safe_load_all(run("kubectl", "kustomize", documented))}
    assert found["Deployment"]["spec"]["replicas"] == 2
    assert found["ConfigMap"]["data"]["gateway.toml"] == SHARED


def test_the_documented_kustomization_replaces_configuration_and_image(documented):
    (documented / "gateway.toml").write_text("# ours\n")
    text = run("kubectl", "kustomize", documented)
    assert "image: registry.example/insights-gateway:0.1.0\n" in text
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert found["ConfigMap"]["metadata"]["name"] == "insights-gateway", "the name that the Deployment mounts"
    assert found["ConfigMap"]["data"]["gateway.toml"] == "# ours\n"
    assert {document["metadata"].get("namespace") for document in found.values()} == {"insights"}


def test_the_chart_takes_a_configuration_from_a_file():
    config = DEPLOY / "kubernetes/team/gateway.toml"
    text = run("helm", "template", "insights", CHART, f"--set-file=config={config}")
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert found["ConfigMap"]["data"]["gateway.toml"].strip() == config.read_text().strip()


def test_the_component_leaves_other_workloads_alone(tmp_path):
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    application = tmp_path / "kubernetes/sidecar-example/application.yaml"
    application.write_text(application.read_text().replace("insights-gateway: sidecar", "other: label"))
    assert "image: insights-gateway" not in run("kubectl", "kustomize", application.parent)


def test_versions_match_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == PACKAGE["version"]
    for name in ("team", "sidecar", "helm"):
        assert Manifests(name).gateway["image"] == f"insights-gateway:{PACKAGE['version']}"


def test_kustomization_and_chart_deploy_the_same_gateway():
    def comparable(manifests):
        pod = manifests.template["spec"]
        for constraint in pod["topologySpreadConstraints"]:
            constraint["labelSelector"] = "checked elsewhere"
        pod["serviceAccountName"] = "checked elsewhere"
        pod["volumes"][0]["configMap"]["name"] = "checked elsewhere"
        for container in (manifests.gateway, manifests.check):
            container.setdefault("imagePullPolicy", "IfNotPresent")
        policy = manifests.one("NetworkPolicy")["spec"]
        del policy["podSelector"]
        config = tomllib.loads(manifests.config)
        config["server"].pop("public_url", None)
        return pod, policy, config

    for ours, theirs in zip(comparable(Manifests("team")), comparable(Manifests("helm")), strict=True):
        assert ours == theirs


def test_the_chart_is_valid():
    run("helm", "lint", "--strict", CHART)


@pytest.mark.parametrize(
    "option, refusal",
    [
        ("replica=3", "additional properties 'replica' not allowed"),
        ("replicas=0", "minimum"),
        ("networkPolicy.store.ports[0]=0", "minimum"),
        ("networkPolicy.store.peers=[]", "/networkPolicy/store/peers"),
        ("image.digest=latest", "does not match pattern"),
        ("service.name=insights-gateway", "/service/name"),
        ("service.port=70000", "maximum"),
        ("extraSecrets.Tls=x", "invalid propertyName 'Tls'"),
        ("terminationGracePeriodSeconds=4", "must leave time for server.drain"),
    ],
)
def test_the_chart_rejects_wrong_values(option, refusal):
    with pytest.raises(AssertionError, match=re.escape(refusal)):
        run("helm", "template", "insights", CHART, "--set", option)


def test_the_chart_contains_the_alerts():
    ours = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    assert Manifests("helm, everything").one("PrometheusRule")["spec"] == ours
