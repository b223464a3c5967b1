# What the controller may do, after its own reference (docs/install/iam_policy.json), without what is not used here:
# Cognito, Shield, the older WAF, customer-owned and IPAM address pools. It changes and deletes what bears its tag.

locals {
  lb_arn    = "arn:${data.aws_partition.current.partition}:elasticloadbalancing:*:*"
  lb_tag    = "elbv2.k8s.aws/cluster"
  lb_groups = ["${local.lb_arn}:targetgroup/*/*", "${local.lb_arn}:loadbalancer/net/*/*", "${local.lb_arn}:loadbalancer/app/*/*"]
  lb_rules  = ["${local.lb_arn}:listener/net/*/*/*", "${local.lb_arn}:listener/app/*/*/*", "${local.lb_arn}:listener-rule/net/*/*/*", "${local.lb_arn}:listener-rule/app/*/*/*"]

  created_tagged = { Null = { "aws:RequestTag/${local.lb_tag}" = "false" } }
  owned          = { Null = { "aws:ResourceTag/${local.lb_tag}" = "false" } }
  retagged       = { Null = { "aws:RequestTag/${local.lb_tag}" = "true", "aws:ResourceTag/${local.lb_tag}" = "false" } }

  load_balancer_statements = [
    {
      Sid       = "TheServiceLinkedRole"
      Effect    = "Allow"
      Action    = "iam:CreateServiceLinkedRole"
      Resource  = "*"
      Condition = { StringEquals = { "iam:AWSServiceName" = "elasticloadbalancing.amazonaws.com" } }
    },
    {
      Sid      = "Read"
      Effect   = "Allow"
      Resource = "*"
      Action = [
        "acm:DescribeCertificate",
        "acm:ListCertificates",
        "ec2:DescribeAccountAttributes",
        "ec2:DescribeAddresses",
        "ec2:DescribeAvailabilityZones",
        "ec2:DescribeInstances",
        "ec2:DescribeInternetGateways",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeRouteTables",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeTags",
        "ec2:DescribeVpcPeeringConnections",
        "ec2:DescribeVpcs",
        "ec2:GetSecurityGroupsForVpc",
        "elasticloadbalancing:DescribeCapacityReservation",
        "elasticloadbalancing:DescribeListenerAttributes",
        "elasticloadbalancing:DescribeListenerCertificates",
        "elasticloadbalancing:DescribeListeners",
        "elasticloadbalancing:DescribeLoadBalancerAttributes",
        "elasticloadbalancing:DescribeLoadBalancers",
        "elasticloadbalancing:DescribeRules",
        "elasticloadbalancing:DescribeSSLPolicies",
        "elasticloadbalancing:DescribeTags",
        "elasticloadbalancing:DescribeTargetGroupAttributes",
        "elasticloadbalancing:DescribeTargetGroups",
        "elasticloadbalancing:DescribeTargetHealth",
        "elasticloadbalancing:DescribeTrustStores",
        "iam:GetServerCertificate",
        "iam:ListServerCertificates",
        "wafv2:GetWebACL",
        "wafv2:GetWebACLForResource",
      ]
    },
    {
      Sid      = "Firewall"
      Effect   = "Allow"
      Action   = ["wafv2:AssociateWebACL", "wafv2:DisassociateWebACL"]
      Resource = "*"
    },
    # The nodes' group, which the pods' addresses belong to, bears EKS's tag and not the controller's.
    {
      Sid      = "OpenTheNodesGroup"
      Effect   = "Allow"
      Action   = ["ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress", "ec2:CreateSecurityGroup"]
      Resource = "*"
    },
    {
      Sid       = "TagNewGroups"
      Effect    = "Allow"
      Action    = "ec2:CreateTags"
      Resource  = "arn:${data.aws_partition.current.partition}:ec2:*:*:security-group/*"
      Condition = merge(local.created_tagged, { StringEquals = { "ec2:CreateAction" = "CreateSecurityGroup" } })
    },
    {
      Sid       = "RetagOwnGroups"
      Effect    = "Allow"
      Action    = ["ec2:CreateTags", "ec2:DeleteTags"]
      Resource  = "arn:${data.aws_partition.current.partition}:ec2:*:*:security-group/*"
      Condition = local.retagged
    },
    {
      Sid       = "DeleteOwnGroups"
      Effect    = "Allow"
      Action    = "ec2:DeleteSecurityGroup"
      Resource  = "*"
      Condition = local.owned
    },
    {
      Sid       = "Create"
      Effect    = "Allow"
      Action    = ["elasticloadbalancing:CreateLoadBalancer", "elasticloadbalancing:CreateTargetGroup"]
      Resource  = "*"
      Condition = local.created_tagged
    },
    {
      Sid       = "TagNew"
      Effect    = "Allow"
      Action    = "elasticloadbalancing:AddTags"
      Resource  = local.lb_groups
      Condition = merge(local.created_tagged, { StringEquals = { "elasticloadbalancing:CreateAction" = ["CreateTargetGroup", "CreateLoadBalancer"] } })
    },
    {
      Sid       = "RetagOwn"
      Effect    = "Allow"
      Action    = ["elasticloadbalancing:AddTags", "elasticloadbalancing:RemoveTags"]
      Resource  = local.lb_groups
      Condition = local.retagged
    },
    {
      Sid    = "ListenersAndRules"
      Effect = "Allow"
      Action = [
        "elasticloadbalancing:AddListenerCertificates",
        "elasticloadbalancing:CreateListener",
        "elasticloadbalancing:CreateRule",
        "elasticloadbalancing:DeleteListener",
        "elasticloadbalancing:DeleteRule",
        "elasticloadbalancing:ModifyListener",
        "elasticloadbalancing:ModifyRule",
        "elasticloadbalancing:RemoveListenerCertificates",
        "elasticloadbalancing:SetRulePriorities",
        "elasticloadbalancing:SetWebAcl",
      ]
      Resource = "*"
    },
    {
      Sid      = "TagListenersAndRules"
      Effect   = "Allow"
      Action   = ["elasticloadbalancing:AddTags", "elasticloadbalancing:RemoveTags"]
      Resource = local.lb_rules
    },
    {
      Sid    = "ChangeOwn"
      Effect = "Allow"
      Action = [
        "elasticloadbalancing:DeleteLoadBalancer",
        "elasticloadbalancing:DeleteTargetGroup",
        "elasticloadbalancing:ModifyCapacityReservation",
        "elasticloadbalancing:ModifyListenerAttributes",
        "elasticloadbalancing:ModifyLoadBalancerAttributes",
        "elasticloadbalancing:ModifyTargetGroup",
        "elasticloadbalancing:ModifyTargetGroupAttributes",
        "elasticloadbalancing:SetIpAddressType",
        "elasticloadbalancing:SetSecurityGroups",
        "elasticloadbalancing:SetSubnets",
      ]
      Resource  = "*"
      Condition = local.owned
    },
    {
      Sid      = "Targets"
      Effect   = "Allow"
      Action   = ["elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"]
      Resource = "${local.lb_arn}:targetgroup/*/*"
    },
  ]
}
