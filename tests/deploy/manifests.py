"""Renders deploy/kubernetes and deploy/helm as they would be sent to the cluster."""

from functools import cache

import yaml

from files import DEPLOY, run

CHART = DEPLOY / "helm/insights-gateway"
# Every optional part is switched on.
EVERYTHING = [
    "--set=image.digest=sha256:" + "0" * 64,
    "--set=imagePullSecrets[0].name=registry",
    "--set=extraSecrets.tls=gateway-tls",
    "--set=extraEnv[0].name=INSIGHTS_GATEWAY_LOG__FILTER,extraEnv[0].value=debug",
    "--set=extraEnv[1].name=NODE,extraEnv[1].valueFrom.fieldRef.fieldPath=spec.nodeName",
    "--set=podDisruptionBudget.maxUnavailable=25%",
    "--set=prometheusOperator.enabled=true",
    "--set=prometheusOperator.labels.release=prometheus",
    "--set=podAnnotations.note=yes,podLabels.cost-centre=support",
    "--set=nodeSelector.disk=ssd,priorityClassName=high",
    "--set=tolerations[0].key=dedicated,tolerations[0].operator=Exists",
    "--set-json=affinity={\"nodeAffinity\":{}}",
    "--set-json=topologySpreadConstraints="
    '[{"maxSkew":1,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule"}]',
]


def kustomize(folder):
    return run("kubectl", "kustomize", DEPLOY / "kubernetes" / folder)


def helm(*options):
    return run("helm", "template", "insights", CHART, *options)


# Pods that share a store, which only variables name. Nothing says how many there are.
SHARED = [
    "--set=replicas=3",
    "--set=extraSecrets.store=insights-gateway-store",
    "--set-json=extraEnv="
    '[{"name":"INSIGHTS_GATEWAY_SHARED__URL","value":"rediss://valkey:6379"},'
    '{"name":"INSIGHTS_GATEWAY_SHARED__SEAL","value":"{ file = \'/run/secrets/store/seal\' }"}]',
]

RENDERED = {
    "team": lambda: kustomize("team"),
    "team, shared": lambda: kustomize("team-shared"),
    "sidecar": lambda: kustomize("sidecar-example"),
    "helm": lambda: helm(),
    "helm, shared": lambda: helm(*SHARED),
    "helm, everything": lambda: helm(*EVERYTHING),
    "helm, nothing": lambda: helm(
        "--set=podDisruptionBudget.enabled=false,networkPolicy.enabled=false,preStopSeconds=0"
    ),
}


@cache
def rendered(name):
    return RENDERED[name]()


def is_ours(container):
    return container["image"].startswith("insights-gateway")


class Manifests:
    def __init__(self, name):
        self.all = [document for document in yaml.safe_load_all(rendered(name)) if document]

    def of(self, kind):
        return [document for document in self.all if document["kind"] == kind]

    def one(self, kind):
        (found,) = self.of(kind)
        return found

    @property
    def template(self):
        """The pods' labels and specification."""
        return self.one("Deployment")["spec"]["template"]

    @property
    def gateway(self):
        """The gateway's container, which may be a sidecar in the pod."""
        pod = self.template["spec"]
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        (found,) = (c for c in containers if is_ours(c) and c["args"][0] == "serve")
        return found

    @property
    def check(self):
        """The init container that checks the configuration."""
        (found,) = (c for c in self.template["spec"]["initContainers"] if is_ours(c) and c["args"][0] == "check")
        return found

    @property
    def environment(self):
        """The gateway's variables. Those that come from the cluster have any value."""
        return {variable["name"]: variable.get("value", "node-1") for variable in self.gateway.get("env", [])}

    @property
    def config(self):
        return self.one("ConfigMap")["data"]["gateway.toml"]
