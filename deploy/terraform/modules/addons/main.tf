# One version for each chart, changed here and nowhere else.

locals {
  charts = {
    karpenter          = "1.14.1"
    load_balancer      = "3.5.0"
    kuberay            = "1.7.0"
    metrics_server     = "3.13.1"
    prometheus_stack   = "88.4.0"
    neuron             = "1.9.0"
    nvidia             = "0.19.2"
    gateway_api_bundle = "1.6.1"
  }

  # Where engines run, in words that the node pools and the manifests share.
  engine_nodes = { "mezzotint.dev/pool" = "engine" }
  engine_taint = { key = "mezzotint.dev/engine", operator = "Exists", effect = "NoSchedule" }
}

# What pods get where they name no class, Prometheus for one. EKS's own default is gp2, without encryption.
resource "kubernetes_storage_class_v1" "gp3" {
  metadata {
    name        = "gp3"
    annotations = { "storageclass.kubernetes.io/is-default-class" = "true" }
  }

  storage_provisioner    = "ebs.csi.aws.com"
  reclaim_policy         = "Delete"
  volume_binding_mode    = "WaitForFirstConsumer"
  allow_volume_expansion = true
  parameters             = { type = "gp3", encrypted = "true" }
}

# --- nodes ---

# A chart of their own: Helm never upgrades definitions that lie in the controller's chart.
resource "helm_release" "karpenter_crd" {
  name       = "karpenter-crd"
  namespace  = "kube-system"
  repository = "oci://public.ecr.aws/karpenter"
  chart      = "karpenter-crd"
  version    = local.charts.karpenter
}

resource "helm_release" "karpenter" {
  name       = "karpenter"
  namespace  = "kube-system"
  repository = "oci://public.ecr.aws/karpenter"
  chart      = "karpenter"
  version    = local.charts.karpenter
  skip_crds  = true
  timeout    = 600

  values = [yamlencode({
    settings = {
      clusterName       = var.cluster_name
      clusterEndpoint   = var.cluster_endpoint
      interruptionQueue = var.interruption_queue
    }
    controller = {
      env = [{ name = "AWS_REGION", value = var.region }]
      resources = {
        requests = { cpu = "250m", memory = "512Mi" }
        limits   = { memory = "512Mi" }
      }
    }
    serviceMonitor = { enabled = var.monitoring }
  })]

  # A ServiceMonitor is refused where its definition, which is the stack's, is not there yet.
  depends_on = [helm_release.karpenter_crd, helm_release.prometheus_stack]
}

# --- Ray ---

resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  namespace        = "kuberay-system"
  create_namespace = true
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = local.charts.kuberay
  timeout          = 600

  values = [yamlencode({
    # The series' own `namespace` is the RayService's, which the rules ask for; the operator's would hide it.
    metrics = { serviceMonitor = { enabled = var.monitoring, honorLabels = true } }
  })]

  depends_on = [helm_release.prometheus_stack]
}

# --- accelerators ---

resource "helm_release" "neuron" {
  count = contains(["inf2", "trn1"], var.accelerator) ? 1 : 0

  name       = "neuron"
  namespace  = "kube-system"
  repository = "oci://public.ecr.aws/neuron"
  chart      = "neuron-helm-chart"
  version    = local.charts.neuron

  values = [yamlencode({
    devicePlugin = {
      tolerations = [
        local.engine_taint,
        { key = "aws.amazon.com/neuron", operator = "Exists", effect = "NoSchedule" },
        { key = "CriticalAddonsOnly", operator = "Exists" },
      ]
    }
    # Whole chips are asked for, so nothing has to find neighbouring cores.
    scheduler = { enabled = false }
    # It would need a role that ends instances.
    npd = { enabled = false }
  })]
}

resource "helm_release" "nvidia" {
  count = var.accelerator == "gpu" ? 1 : 0

  name       = "nvidia-device-plugin"
  namespace  = "kube-system"
  repository = "https://nvidia.github.io/k8s-device-plugin"
  chart      = "nvidia-device-plugin"
  version    = local.charts.nvidia

  # The chart's own affinity waits for labels that node feature discovery would set; the node pool's label does as well.
  values = [yamlencode({
    nodeSelector = local.engine_nodes
    affinity     = null
    tolerations = [
      local.engine_taint,
      { key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" },
      { key = "CriticalAddonsOnly", operator = "Exists" },
    ]
  })]
}

# --- metrics ---

resource "helm_release" "metrics_server" {
  name       = "metrics-server"
  namespace  = "kube-system"
  repository = "https://kubernetes-sigs.github.io/metrics-server/"
  chart      = "metrics-server"
  version    = local.charts.metrics_server
}

resource "kubernetes_namespace_v1" "monitoring" {
  count = var.monitoring ? 1 : 0

  metadata {
    name = "monitoring"
  }
}

# The chart's own password is known to everybody.
resource "random_password" "grafana" {
  count = var.monitoring ? 1 : 0

  length  = 32
  special = false
}

resource "kubernetes_secret_v1" "grafana" {
  count = var.monitoring ? 1 : 0

  metadata {
    name      = "grafana-admin"
    namespace = kubernetes_namespace_v1.monitoring[0].metadata[0].name
  }

  data = {
    user     = "admin"
    password = random_password.grafana[0].result
  }
}

resource "helm_release" "prometheus_stack" {
  count = var.monitoring ? 1 : 0

  name       = "monitoring"
  namespace  = kubernetes_namespace_v1.monitoring[0].metadata[0].name
  repository = "https://prometheus-community.github.io/helm-charts"
  chart      = "kube-prometheus-stack"
  version    = local.charts.prometheus_stack
  timeout    = 900

  values = [yamlencode({
    # The control plane is AWS's, and EKS's kube-proxy listens on its node's loopback address alone: these cannot be
    # scraped, and would alert for ever.
    kubeControllerManager = { enabled = false }
    kubeEtcd              = { enabled = false }
    kubeProxy             = { enabled = false }
    kubeScheduler         = { enabled = false }

    prometheus = {
      prometheusSpec = {
        # Monitors and rules of every namespace, not of this release alone.
        podMonitorSelectorNilUsesHelmValues     = false
        probeSelectorNilUsesHelmValues          = false
        ruleSelectorNilUsesHelmValues           = false
        scrapeConfigSelectorNilUsesHelmValues   = false
        serviceMonitorSelectorNilUsesHelmValues = false

        retention     = "${var.metrics_days}d"
        retentionSize = "${floor(var.metrics_gib * 0.85)}GB"
        resources = {
          requests = { cpu = "200m", memory = "1Gi" }
          limits   = { memory = "2Gi" }
        }
        storageSpec = {
          volumeClaimTemplate = {
            spec = {
              storageClassName = kubernetes_storage_class_v1.gp3.metadata[0].name
              accessModes      = ["ReadWriteOnce"]
              resources        = { requests = { storage = "${var.metrics_gib}Gi" } }
            }
          }
        }
      }
    }

    # Where alerts go is said in a Secret, for a receiver's address is one (docs/deploy/runbook.md). Until it is there,
    # the operator gives Alertmanager a receiver that drops everything.
    alertmanager = {
      alertmanagerSpec = { useExistingSecret = true, configSecret = var.alert_routes }
    }

    grafana = {
      admin   = { existingSecret = kubernetes_secret_v1.grafana[0].metadata[0].name, userKey = "user", passwordKey = "password" }
      sidecar = { dashboards = { searchNamespace = "ALL" } }
    }
  })]
}
