mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-north-1:111122223333:key/secrets" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mock" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_eks_cluster" {
    defaults = {
      arn        = "arn:aws:eks:eu-north-1:111122223333:cluster/plate"
      endpoint   = "https://plate.example"
      vpc_config = { cluster_security_group_id = "sg-0123456789abcdef0" }
    }
  }
}

variables {
  cluster_name = "plate"
  subnet_ids   = ["subnet-a", "subnet-b"]
  logs_key_arn = "arn:aws:kms:eu-north-1:111122223333:key/logs"
}

run "private_encrypted_logged" {
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "The API must be reached from the VPC, and not from the internet."
  }

  assert {
    condition     = contains(aws_eks_cluster.this.encryption_config[0].resources, "secrets") && aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == aws_kms_key.secrets.arn && aws_kms_key.secrets.enable_key_rotation
    error_message = "Secrets must be encrypted with a key that rotates."
  }

  assert {
    condition     = length(aws_eks_cluster.this.enabled_cluster_log_types) == 5
    error_message = "Every log of the control plane must be kept."
  }

  assert {
    condition     = aws_cloudwatch_log_group.control_plane.name == "/aws/eks/plate/cluster" && aws_cloudwatch_log_group.control_plane.kms_key_id == var.logs_key_arn && aws_cloudwatch_log_group.control_plane.retention_in_days > 0
    error_message = "The control plane's log group must be the one EKS writes to, encrypted, and forget one day."
  }

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API"
    error_message = "Access must be by access entries, not by the aws-auth ConfigMap."
  }

  assert {
    condition     = toset([for tag in aws_ec2_tag.cluster_security_group : tag.key]) == toset(["karpenter.sh/discovery", "mezzotint.dev/cluster"])
    error_message = "The nodes' security group must be found by Karpenter, and by whoever takes the cluster down."
  }
}

run "system_nodes" {
  assert {
    condition     = aws_eks_node_group.system.capacity_type == "ON_DEMAND" && aws_eks_node_group.system.scaling_config[0].min_size >= 2
    error_message = "System pods must run on two nodes that are not taken away."
  }

  assert {
    condition     = aws_launch_template.system.metadata_options[0].http_tokens == "required" && aws_launch_template.system.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "Pods must not reach the node's credentials: IMDSv2, one hop."
  }

  assert {
    condition     = tobool(aws_launch_template.system.block_device_mappings[0].ebs[0].encrypted) && aws_launch_template.system.block_device_mappings[0].ebs[0].volume_type == "gp3"
    error_message = "The nodes' disks must be encrypted gp3."
  }

  assert {
    condition     = alltrue([for kind in aws_launch_template.system.tag_specifications : kind.tags["mezzotint.dev/cluster"] == "plate"])
    error_message = "Instances, disks and interfaces must bear the cluster's tag."
  }

  assert {
    condition     = !contains([for attachment in aws_iam_role_policy_attachment.system_nodes : basename(attachment.policy_arn)], "AmazonEKS_CNI_Policy")
    error_message = "The CNI's rights must not be every node's."
  }
}

run "add_ons" {
  assert {
    condition     = jsondecode(aws_eks_addon.before_nodes["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "Without the CNI's network policies, the manifests' NetworkPolicies are words."
  }

  assert {
    condition     = toset(concat(keys(aws_eks_addon.before_nodes), keys(aws_eks_addon.after_nodes))) == toset(["vpc-cni", "kube-proxy", "eks-pod-identity-agent", "coredns", "aws-ebs-csi-driver"])
    error_message = "The five add-ons must be there."
  }

  assert {
    condition     = one(aws_eks_addon.before_nodes["vpc-cni"].pod_identity_association).service_account == "aws-node" && one(aws_eks_addon.after_nodes["aws-ebs-csi-driver"].pod_identity_association).service_account == "ebs-csi-controller-sa"
    error_message = "CNI and CSI driver must have roles by Pod Identity."
  }

  assert {
    condition     = jsondecode(aws_eks_addon.after_nodes["aws-ebs-csi-driver"].configuration_values).controller.extraVolumeTags["mezzotint.dev/cluster"] == "plate"
    error_message = "Volumes must bear the cluster's tag."
  }
}

run "some_addresses_reach_the_api" {
  command = plan

  variables {
    public_access_cidrs = ["203.0.113.7/32"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.7/32"]) && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "The addresses that are named, and no others, must reach the API."
  }
}

run "everybody_is_refused" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "everybody_in_two_halves_is_refused" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/1", "128.0.0.0/1"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "no_range_is_refused" {
  command = plan

  variables {
    public_access_cidrs = ["office"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "admins_govern" {
  command = plan

  variables {
    admins = ["arn:aws:iam::111122223333:role/operator"]
  }

  assert {
    condition     = endswith(aws_eks_access_policy_association.admin["arn:aws:iam::111122223333:role/operator"].policy_arn, "/AmazonEKSClusterAdminPolicy")
    error_message = "An admin must get the policy of cluster admins."
  }
}

run "a_name_is_no_admin" {
  command = plan

  variables {
    admins = ["operator"]
  }

  expect_failures = [var.admins]
}

run "an_old_kubernetes_is_refused" {
  command = plan

  variables {
    kubernetes_version = "1.34"
  }

  expect_failures = [var.kubernetes_version]
}

run "one_system_node_is_refused" {
  command = plan

  variables {
    system_nodes = { min = 1 }
  }

  expect_failures = [var.system_nodes]
}
