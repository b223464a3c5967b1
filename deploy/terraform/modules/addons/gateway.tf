# The way in: Gateway API, and the controller that makes load balancers of its objects.

data "http" "gateway_api" {
  url = "https://github.com/kubernetes-sigs/gateway-api/releases/download/v${local.charts.gateway_api_bundle}/standard-install.yaml"

  request_headers = { Accept = "application/yaml" }

  lifecycle {
    postcondition {
      condition     = self.status_code == 200
      error_message = "Gateway API's definitions could not be fetched from ${self.url}: status ${self.status_code}."
    }
  }
}

locals {
  gateway_api_objects = [
    for document in split("\n---\n", "\n${data.http.gateway_api.response_body}") : yamldecode(document)
    if length(regexall("(?m)^kind:", document)) > 0
  ]
  # The definitions, and none of what else a file from the internet might hold.
  gateway_api = {
    for object in local.gateway_api_objects : object.metadata.name => { for key, value in object : key => value if key != "status" }
    if object.kind == "CustomResourceDefinition"
  }
}

resource "kubernetes_manifest" "gateway_api" {
  for_each = local.gateway_api

  manifest = each.value

  # Definitions of before, from whoever set the cluster up, are taken over.
  field_manager {
    name            = "mezzotint-addons"
    force_conflicts = true
  }

  lifecycle {
    precondition {
      condition     = endswith(each.key, ".gateway.networking.k8s.io") && try(each.value.metadata.annotations["gateway.networking.k8s.io/bundle-version"], "") == "v${local.charts.gateway_api_bundle}"
      error_message = "${each.key} is no definition of Gateway API ${local.charts.gateway_api_bundle}."
    }
  }
}

# --- the controller ---

data "aws_partition" "current" {}

resource "aws_iam_role" "load_balancer" {
  name_prefix = "${var.cluster_name}-lb-"
  description = "AWS Load Balancer Controller"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:RequestTag/eks-cluster-name"           = var.cluster_name
          "aws:RequestTag/kubernetes-namespace"       = "kube-system"
          "aws:RequestTag/kubernetes-service-account" = "aws-load-balancer-controller"
        }
      }
    }]
  })
}

resource "aws_iam_policy" "load_balancer" {
  name_prefix = "${var.cluster_name}-lb-"
  description = "AWS Load Balancer Controller"
  policy      = jsonencode({ Version = "2012-10-17", Statement = local.load_balancer_statements })
}

resource "aws_iam_role_policy_attachment" "load_balancer" {
  role       = aws_iam_role.load_balancer.name
  policy_arn = aws_iam_policy.load_balancer.arn
}

resource "aws_eks_pod_identity_association" "load_balancer" {
  cluster_name    = var.cluster_name
  namespace       = "kube-system"
  service_account = "aws-load-balancer-controller"
  role_arn        = aws_iam_role.load_balancer.arn
}

resource "helm_release" "load_balancer" {
  name       = "aws-load-balancer-controller"
  namespace  = "kube-system"
  repository = "https://aws.github.io/eks-charts"
  chart      = "aws-load-balancer-controller"
  version    = local.charts.load_balancer
  timeout    = 600

  values = [yamlencode({
    clusterName       = var.cluster_name
    region            = var.region
    vpcId             = var.vpc_id
    defaultTargetType = "ip"
    # What it makes is found by this tag when the cluster is taken down.
    defaultTags    = { "mezzotint.dev/cluster" = var.cluster_name }
    serviceAccount = { name = "aws-load-balancer-controller" }
    # Services of type LoadBalancer are left alone: the Gateway is the one way in.
    enableServiceMutatorWebhook = false
    # Of the namespace whose label asks for readiness gates, the edge's pods alone have one. Of the others none may wait
    # for this controller: while it is away its webhook refuses pods, Ray's among them.
    objectSelector      = { matchLabels = { "app.kubernetes.io/component" = "edge" } }
    podDisruptionBudget = { maxUnavailable = 1 }
    enableShield        = false
    enableWaf           = false
  })]

  # It looks once, at its start, which definitions there are.
  depends_on = [kubernetes_manifest.gateway_api, aws_eks_pod_identity_association.load_balancer, aws_iam_role_policy_attachment.load_balancer]
}
