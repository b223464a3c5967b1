# Nodes for what must run before Karpenter can start any: CoreDNS, Karpenter itself, the controllers.
resource "aws_iam_role" "system_nodes" {
  name_prefix = "${var.cluster_name}-system-"
  description = "System nodes"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

# Not the CNI's: it has a role of its own. Session Manager is the way to a private API (README).
resource "aws_iam_role_policy_attachment" "system_nodes" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonSSMManagedInstanceCore"])

  role       = aws_iam_role.system_nodes.name
  policy_arn = "${local.managed_policies}/${each.key}"
}

resource "aws_launch_template" "system" {
  name_prefix            = "${var.cluster_name}-system-"
  update_default_version = true

  # With one hop, pods do not reach the node's credentials.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = 50
      encrypted             = true
      delete_on_termination = true
    }
  }

  # The provider's default tags stop at the template.
  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]

    content {
      resource_type = tag_specifications.value

      tags = {
        Name                    = "${var.cluster_name}-system"
        "mezzotint.dev/cluster" = var.cluster_name
      }
    }
  }
}

resource "aws_eks_node_group" "system" {
  cluster_name           = aws_eks_cluster.this.name
  node_group_name_prefix = "system-"
  node_role_arn          = aws_iam_role.system_nodes.arn
  subnet_ids             = var.subnet_ids
  version                = var.kubernetes_version
  ami_type               = "AL2023_x86_64_STANDARD"
  capacity_type          = "ON_DEMAND"
  instance_types         = var.system_instance_types

  launch_template {
    id      = aws_launch_template.system.id
    version = aws_launch_template.system.latest_version
  }

  scaling_config {
    min_size     = var.system_nodes.min
    max_size     = var.system_nodes.max
    desired_size = var.system_nodes.desired
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    create_before_destroy = true
    # Whoever scaled it by hand had a reason.
    ignore_changes = [scaling_config[0].desired_size]
  }

  # A node without a network, or without its role, never becomes ready.
  depends_on = [aws_eks_addon.before_nodes, aws_iam_role_policy_attachment.system_nodes]
}
