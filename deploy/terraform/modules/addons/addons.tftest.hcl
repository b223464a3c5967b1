mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mock" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::111122223333:policy/mock" }
  }
}

mock_provider "helm" {}
mock_provider "kubernetes" {}
mock_provider "random" {}

mock_provider "http" {
  mock_data "http" {
    defaults = {
      status_code   = 200
      response_body = <<-YAML
        # Gateway API, in short.
        ---
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata:
          name: gateways.gateway.networking.k8s.io
          annotations:
            gateway.networking.k8s.io/bundle-version: v1.6.1
        ---
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata:
          name: httproutes.gateway.networking.k8s.io
          annotations:
            gateway.networking.k8s.io/bundle-version: v1.6.1
        status: {}
        ---
        apiVersion: admissionregistration.k8s.io/v1
        kind: ValidatingAdmissionPolicy
        metadata:
          name: safe-upgrades.gateway.networking.k8s.io
      YAML
    }
  }
}

variables {
  cluster_name       = "plate"
  cluster_endpoint   = "https://plate.example"
  region             = "eu-north-1"
  vpc_id             = "vpc-0123456789abcdef0"
  interruption_queue = "plate"
}

run "versions_are_pinned" {
  command = plan

  assert {
    condition     = helm_release.kuberay.version == "1.7.0" && helm_release.karpenter.version == "1.14.1" && helm_release.karpenter_crd.version == "1.14.1" && helm_release.load_balancer.version == "3.5.0"
    error_message = "KubeRay, Karpenter and the load balancers' controller must have the versions that the manifests were written for."
  }

  assert {
    condition     = alltrue([for version in values(output.versions) : can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", version))])
    error_message = "Every chart must have one version."
  }
}

run "definitions_come_before_controllers" {
  command = plan

  assert {
    condition     = toset(keys(kubernetes_manifest.gateway_api)) == toset(["gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io"])
    error_message = "Of what was fetched, the definitions must be taken, and nothing else."
  }

  assert {
    condition     = !contains(keys(kubernetes_manifest.gateway_api["httproutes.gateway.networking.k8s.io"].manifest), "status")
    error_message = "A status is the API server's to write."
  }

  assert {
    condition     = helm_release.karpenter.skip_crds
    error_message = "Karpenter's definitions must come from their own chart, which upgrades them."
  }
}

run "another_gateway_api_is_refused" {
  command = plan

  override_data {
    target = data.http.gateway_api
    values = {
      status_code   = 200
      response_body = <<-YAML
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata:
          name: gateways.gateway.networking.k8s.io
          annotations:
            gateway.networking.k8s.io/bundle-version: v1.2.0
      YAML
    }
  }

  expect_failures = [kubernetes_manifest.gateway_api]
}

run "what_could_not_be_fetched_is_refused" {
  command = plan

  override_data {
    target = data.http.gateway_api
    values = { status_code = 404, response_body = "" }
  }

  expect_failures = [data.http.gateway_api]
}

run "controllers_know_where_they_are" {
  command = plan

  assert {
    condition     = yamldecode(helm_release.load_balancer.values[0]).vpcId == "vpc-0123456789abcdef0" && yamldecode(helm_release.load_balancer.values[0]).region == "eu-north-1"
    error_message = "The load balancers' controller cannot ask the node: one hop is too few for a pod."
  }

  assert {
    condition     = yamldecode(helm_release.load_balancer.values[0]).defaultTags["mezzotint.dev/cluster"] == "plate"
    error_message = "Load balancers must bear the cluster's tag."
  }

  assert {
    condition     = yamldecode(helm_release.karpenter.values[0]).settings.interruptionQueue == "plate" && yamldecode(helm_release.karpenter.values[0]).controller.env[0].value == "eu-north-1"
    error_message = "Karpenter must hear of interruptions, and know its region."
  }

  assert {
    condition     = aws_eks_pod_identity_association.load_balancer.service_account == yamldecode(helm_release.load_balancer.values[0]).serviceAccount.name
    error_message = "The role must be that of the controller's ServiceAccount."
  }
}

run "the_controllers_webhook_is_asked_of_the_edges_pods_alone" {
  command = plan

  assert {
    condition     = yamldecode(helm_release.load_balancer.values[0]).objectSelector == { matchLabels = { "app.kubernetes.io/component" = "edge" } }
    error_message = "Ray's pods must start while the controller is away."
  }
}

run "the_controller_deletes_only_its_own" {
  command = plan

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_policy.load_balancer.policy).Statement :
      try(statement.Condition.Null["aws:ResourceTag/elbv2.k8s.aws/cluster"], "") == "false"
      if length(setintersection(toset(flatten([statement.Action])), toset(["elasticloadbalancing:DeleteLoadBalancer", "elasticloadbalancing:DeleteTargetGroup", "ec2:DeleteSecurityGroup"]))) > 0
    ])
    error_message = "Load balancers, target groups and security groups must bear the controller's tag to be deleted."
  }

  assert {
    condition     = length(aws_iam_policy.load_balancer.policy) < 6144
    error_message = "IAM takes policies of up to 6,144 characters."
  }
}

run "volumes_are_encrypted_by_default" {
  command = plan

  assert {
    condition     = kubernetes_storage_class_v1.gp3.parameters.encrypted == "true" && kubernetes_storage_class_v1.gp3.metadata[0].annotations["storageclass.kubernetes.io/is-default-class"] == "true"
    error_message = "A volume that names no class must be encrypted gp3."
  }
}

run "no_device_plugin_without_devices" {
  command = plan

  assert {
    condition     = length(helm_release.neuron) == 0 && length(helm_release.nvidia) == 0
    error_message = "CPUs need no device plugin."
  }
}

run "neuron" {
  command = plan

  variables {
    accelerator = "inf2"
  }

  assert {
    condition     = length(helm_release.neuron) == 1 && length(helm_release.nvidia) == 0
    error_message = "inf2 needs the Neuron device plugin."
  }

  assert {
    condition     = contains([for toleration in yamldecode(helm_release.neuron[0].values[0]).devicePlugin.tolerations : toleration.key], "mezzotint.dev/engine")
    error_message = "The plugin must stand the taint of engine nodes."
  }
}

run "gpu" {
  command = plan

  variables {
    accelerator = "gpu"
  }

  assert {
    condition     = length(helm_release.nvidia) == 1 && yamldecode(helm_release.nvidia[0].values[0]).nodeSelector["mezzotint.dev/pool"] == "engine"
    error_message = "GPUs need the NVIDIA device plugin, on engine nodes."
  }

  assert {
    condition     = contains([for toleration in yamldecode(helm_release.nvidia[0].values[0]).tolerations : toleration.key], "mezzotint.dev/engine")
    error_message = "The plugin must stand the taint of engine nodes."
  }
}

run "monitoring_is_a_choice" {
  command = plan

  variables {
    monitoring = false
  }

  assert {
    condition     = length(helm_release.prometheus_stack) == 0 && length(kubernetes_namespace_v1.monitoring) == 0
    error_message = "A cluster that is watched otherwise must be left so."
  }

  assert {
    condition     = yamldecode(helm_release.karpenter.values[0]).serviceMonitor.enabled == false && yamldecode(helm_release.kuberay.values[0]).metrics.serviceMonitor.enabled == false
    error_message = "Without the operator there is no definition of a ServiceMonitor."
  }
}

run "what_alerts_are_made_of_is_scraped" {
  command = plan

  assert {
    condition     = yamldecode(helm_release.karpenter.values[0]).serviceMonitor.enabled && yamldecode(helm_release.kuberay.values[0]).metrics.serviceMonitor.enabled
    error_message = "Both charts leave their ServiceMonitor out by default."
  }

  assert {
    condition     = yamldecode(helm_release.kuberay.values[0]).metrics.serviceMonitor.honorLabels
    error_message = "The rules ask for the RayService's namespace, not the operator's."
  }
}

run "alerts_go_where_a_secret_says" {
  command = plan

  variables {
    alert_routes = "pagers"
  }

  assert {
    condition     = yamldecode(helm_release.prometheus_stack[0].values[0]).alertmanager.alertmanagerSpec == { useExistingSecret = true, configSecret = "pagers" }
    error_message = "The chart's own route goes nowhere."
  }
}

run "what_cannot_be_scraped_does_not_alert" {
  command = plan

  assert {
    condition     = alltrue([for part in ["ControllerManager", "Etcd", "Proxy", "Scheduler"] : !yamldecode(helm_release.prometheus_stack[0].values[0])["kube${part}"].enabled])
    error_message = "On EKS nobody reaches their metrics: their alerts would fire for ever."
  }
}

run "monitors_of_every_namespace_are_scraped" {
  command = plan

  assert {
    condition     = alltrue([for kind in ["podMonitor", "serviceMonitor", "scrapeConfig", "rule"] : yamldecode(helm_release.prometheus_stack[0].values[0]).prometheus.prometheusSpec["${kind}SelectorNilUsesHelmValues"] == false])
    error_message = "Prometheus must take the manifests' monitors and rules."
  }
}

run "grafana_has_a_password_of_its_own" {
  command = plan

  assert {
    condition     = yamldecode(helm_release.prometheus_stack[0].values[0]).grafana.admin.existingSecret == kubernetes_secret_v1.grafana[0].metadata[0].name && random_password.grafana[0].length >= 24
    error_message = "The chart's own password is known to everybody."
  }
}

run "an_unknown_accelerator_is_refused" {
  command = plan

  variables {
    accelerator = "tpu"
  }

  expect_failures = [var.accelerator]
}
