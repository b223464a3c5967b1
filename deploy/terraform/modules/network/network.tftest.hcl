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
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-north-1a", "eu-north-1b", "eu-north-1c"] }
  }
  mock_data "aws_ec2_instance_type_offerings" {
    defaults = { locations = ["eu-north-1c", "eu-north-1a"] }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-north-1:111122223333:key/logs" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/flow" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-north-1:111122223333:log-group:flow" }
  }
}

variables {
  cluster_name   = "plate"
  instance_types = ["inf2.8xlarge"]
}

run "two_zones_that_offer_the_type" {
  assert {
    condition     = join(" ", output.availability_zones) == "eu-north-1a eu-north-1c"
    error_message = "Subnets must lie in the zones that offer inf2.8xlarge, not in ${join(" ", output.availability_zones)}."
  }

  assert {
    condition     = length(distinct(aws_subnet.private[*].availability_zone)) == 2 && length(distinct(aws_subnet.public[*].availability_zone)) == 2
    error_message = "Private and public subnets must each lie in two zones."
  }

  assert {
    condition     = length(distinct(concat(aws_subnet.private[*].cidr_block, aws_subnet.public[*].cidr_block))) == 4
    error_message = "No two subnets may share a range."
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.private : subnet.tags["karpenter.sh/discovery"] == "plate" && subnet.tags["kubernetes.io/role/internal-elb"] == "1"])
    error_message = "Private subnets must be found by Karpenter and by internal load balancers."
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.public : subnet.tags["kubernetes.io/role/elb"] == "1" && !contains(keys(subnet.tags), "karpenter.sh/discovery") && !subnet.map_public_ip_on_launch])
    error_message = "Public subnets are for load balancers: no node, and no public address by default."
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.to_nat) == 2
    error_message = "One NAT gateway must serve both zones."
  }

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && length(aws_vpc_endpoint.s3.route_table_ids) == 2
    error_message = "S3 must be reached through its gateway endpoint from both private subnets."
  }

  assert {
    condition     = aws_flow_log.this.traffic_type == "ALL" && aws_cloudwatch_log_group.flow.kms_key_id == aws_kms_key.logs.arn && aws_cloudwatch_log_group.flow.retention_in_days > 0
    error_message = "All traffic must be logged, encrypted, and forgotten one day."
  }
}

# After the run before: its zones must hold.
run "zones_stay_when_more_zones_offer_the_type" {
  override_data {
    target = data.aws_ec2_instance_type_offerings.by_zone
    values = { locations = ["eu-north-1a", "eu-north-1b", "eu-north-1c"] }
  }

  assert {
    condition     = join(" ", output.availability_zones) == "eu-north-1a eu-north-1c"
    error_message = "A zone that comes later must not replace the subnets of a running cluster."
  }
}

run "one_zone_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type_offerings.by_zone
    values = { locations = ["eu-north-1b"] }
  }

  expect_failures = [terraform_data.zones]
}

run "a_type_offered_elsewhere_only_is_refused" {
  command = plan

  variables {
    instance_types = ["trn1.2xlarge"]
  }

  override_data {
    target = data.aws_ec2_instance_type_offerings.by_zone
    values = { locations = [] }
  }

  expect_failures = [terraform_data.zones]
}

run "zones_can_be_named" {
  variables {
    instance_types     = []
    availability_zones = ["eu-north-1b", "eu-north-1c"]
    nat                = "per-zone"
  }

  assert {
    condition     = join(" ", output.availability_zones) == "eu-north-1b eu-north-1c"
    error_message = "The zones that were named must be taken."
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 2 && length(aws_eip.nat) == 2
    error_message = "Each zone must have a NAT gateway of its own."
  }
}

run "interface_endpoints_are_reached_from_the_vpc_alone" {
  variables {
    instance_types      = []
    interface_endpoints = ["ecr.api", "sts"]
  }

  assert {
    condition     = length(aws_vpc_endpoint.interface) == 2 && aws_vpc_security_group_ingress_rule.endpoints[0].cidr_ipv4 == var.vpc_cidr
    error_message = "Endpoints must be there, and open to the VPC's range alone."
  }
}

run "one_zone_is_too_few" {
  command = plan

  variables {
    zone_count = 1
  }

  expect_failures = [var.zone_count]
}

run "a_range_too_small_is_refused" {
  command = plan

  variables {
    vpc_cidr = "10.0.0.0/24"
  }

  expect_failures = [var.vpc_cidr]
}
