mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-north-1" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mock" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::111122223333:policy/mock" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:eu-north-1:111122223333:plate", url = "https://sqs.example/plate" }
  }
}

variables {
  cluster_name = "plate"
  cluster_arn  = "arn:aws:eks:eu-north-1:111122223333:cluster/plate"
}

run "the_controller_has_its_role_by_pod_identity" {
  assert {
    condition     = aws_eks_pod_identity_association.controller.cluster_name == "plate" && aws_eks_pod_identity_association.controller.namespace == "kube-system" && aws_eks_pod_identity_association.controller.service_account == "karpenter"
    error_message = "The role must be that of ServiceAccount karpenter in kube-system."
  }

  assert {
    condition     = jsondecode(aws_iam_role.controller.assume_role_policy).Statement[0].Principal.Service == "pods.eks.amazonaws.com" && jsondecode(aws_iam_role.controller.assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/eks-cluster-name"] == "plate"
    error_message = "Only pods of this cluster may take the role."
  }
}

run "it_ends_and_changes_only_what_is_this_clusters" {
  assert {
    condition = alltrue([
      for statement in flatten([for policy in aws_iam_policy.controller : jsondecode(policy.policy).Statement]) :
      can(statement.Condition.StringEquals["aws:ResourceTag/kubernetes.io/cluster/plate"])
      if length(setintersection(toset(flatten([statement.Action])), toset(["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate", "iam:DeleteInstanceProfile", "iam:AddRoleToInstanceProfile"]))) > 0
    ])
    error_message = "What ends or changes a thing must ask for this cluster's tag."
  }

  assert {
    condition = alltrue([
      for statement in flatten([for policy in aws_iam_policy.controller : jsondecode(policy.policy).Statement]) :
      alltrue([for action in flatten([statement.Action]) : can(regex("^(ec2:Describe|pricing:Get|iam:List)", action))])
      if statement.Resource == "*"
    ])
    error_message = "On every resource, the controller may only read."
  }

  assert {
    condition     = alltrue([for policy in aws_iam_policy.controller : length(policy.policy) < 6144])
    error_message = "IAM takes policies of up to 6,144 characters."
  }
}

run "interruptions_are_heard_of" {
  assert {
    condition     = output.interruption_queue == "plate" && aws_sqs_queue.interruptions.sqs_managed_sse_enabled
    error_message = "The queue must bear the cluster's name and be encrypted."
  }

  assert {
    condition     = length(aws_cloudwatch_event_rule.interruptions) == 5 && alltrue([for target in aws_cloudwatch_event_target.interruptions : target.arn == aws_sqs_queue.interruptions.arn])
    error_message = "Health, interruptions of spot and reserved capacity, rebalancing and state changes must reach the queue."
  }

  assert {
    condition     = anytrue([for statement in jsondecode(aws_sqs_queue_policy.interruptions.policy).Statement : statement.Effect == "Deny" && try(statement.Condition.Bool["aws:SecureTransport"], "") == "false"])
    error_message = "The queue must refuse what comes without TLS."
  }
}

run "nodes_have_a_role_by_name" {
  assert {
    condition     = output.node_role == "plate-node" && aws_eks_access_entry.node.type == "EC2_LINUX"
    error_message = "EC2NodeClasses name the role, and the cluster must take its nodes in."
  }

  assert {
    condition     = toset([for attachment in aws_iam_role_policy_attachment.node : basename(attachment.policy_arn)]) == toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonSSMManagedInstanceCore"])
    error_message = "Nodes join, pull images and are reached by Session Manager; no more."
  }
}
