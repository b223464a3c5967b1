# What Karpenter needs in AWS; the controller itself is the module `addons`' work, the node pools are the manifests'.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.region
}

# --- nodes ---

# A fixed name: EC2NodeClasses name the role.
resource "aws_iam_role" "node" {
  name        = "${var.cluster_name}-node"
  description = "Nodes that Karpenter starts"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonSSMManagedInstanceCore"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

resource "aws_eks_access_entry" "node" {
  # The name out of the ARN: what waits for the cluster says so by it.
  cluster_name  = basename(var.cluster_arn)
  principal_arn = aws_iam_role.node.arn
  type          = "EC2_LINUX"
}

# --- the controller ---

resource "aws_iam_role" "controller" {
  name_prefix = "${var.cluster_name}-karpenter-"
  description = "Karpenter's controller"

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
          "aws:RequestTag/kubernetes-service-account" = "karpenter"
        }
      }
    }]
  })
}

# One policy would be larger than IAM takes.
resource "aws_iam_policy" "controller" {
  for_each = local.policies

  name_prefix = "${var.cluster_name}-karpenter-${each.key}-"
  description = "Karpenter's controller: ${each.key}"
  policy      = jsonencode({ Version = "2012-10-17", Statement = each.value })
}

resource "aws_iam_role_policy_attachment" "controller" {
  for_each = local.policies

  role       = aws_iam_role.controller.name
  policy_arn = aws_iam_policy.controller[each.key].arn
}

resource "aws_eks_pod_identity_association" "controller" {
  cluster_name    = basename(var.cluster_arn)
  namespace       = "kube-system"
  service_account = "karpenter"
  role_arn        = aws_iam_role.controller.arn
}
