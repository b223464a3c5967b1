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
    defaults = { locations = ["eu-north-1a", "eu-north-1b"] }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mock" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::111122223333:policy/mock" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-north-1:111122223333:key/mock" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-north-1:111122223333:log-group:mock" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:eu-north-1:111122223333:plate" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = {
      arn        = "arn:aws:eks:eu-north-1:111122223333:cluster/plate"
      endpoint   = "https://plate.example"
      vpc_config = { cluster_security_group_id = "sg-0123456789abcdef0" }
    }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::mock" }
  }
  mock_resource "aws_db_instance" {
    defaults = { address = "plate.rds.example", master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-north-1:111122223333:secret:rds" }] }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = { primary_endpoint_address = "plate.cache.example" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-north-1:111122223333:secret:valkey" }
  }
}

mock_provider "random" {}

variables {
  region       = "eu-north-1"
  cluster_name = "plate"
  accelerator  = "inf2"
}

run "everything_on_inferentia" {
  assert {
    condition     = output.cluster_name == "plate" && output.region == "eu-north-1" && output.account_id == "111122223333" && output.node_role == "plate-node" && output.interruption_queue == "plate"
    error_message = "The outputs must name what was made."
  }

  assert {
    condition     = output.model_uri == "s3://plate-models-111122223333/sdxl-inf2" && output.image_store == "s3://plate-pictures-111122223333/images"
    error_message = "Models and pictures must lie in the buckets."
  }

  assert {
    condition     = output.valkey_address == "rediss://plate.cache.example:6379" && output.database_host == "plate.rds.example"
    error_message = "The stores' addresses must be put out."
  }

  assert {
    condition     = output.lb_scheme == "internal" && output.lb_cidrs == "10.42.0.0/16"
    error_message = "By default the load balancer must be the VPC's own."
  }

  assert {
    condition     = length(output.availability_zones) == 2
    error_message = "Two zones must be used."
  }
}

run "the_demo_on_cpus" {
  command = plan

  variables {
    accelerator = "none"
  }

  assert {
    condition     = output.model_uri == "demo"
    error_message = "Without an accelerator the embedded model is served."
  }
}

run "a_model_of_ones_own" {
  command = plan

  variables {
    model_uri = "s3://elsewhere/anime"
    lb_scheme = "internet-facing"
    lb_cidrs  = ["203.0.113.7/32", "198.51.100.0/24"]
  }

  assert {
    condition     = output.model_uri == "s3://elsewhere/anime" && output.lb_cidrs == "203.0.113.7/32,198.51.100.0/24"
    error_message = "What the site says must be put out."
  }
}

run "nonsense_is_no_region" {
  command = plan

  variables {
    region = "mars-north-1"
  }

  expect_failures = [var.region]
}

run "a_zone_is_no_region" {
  command = plan

  variables {
    region = "us-west-2a"
  }

  expect_failures = [var.region]
}

run "an_unknown_accelerator_is_refused" {
  command = plan

  variables {
    accelerator = "tpu"
  }

  expect_failures = [var.accelerator]
}

run "a_name_no_bucket_can_bear_is_refused" {
  command = plan

  variables {
    cluster_name = "My_Cluster"
  }

  expect_failures = [var.cluster_name]
}

run "a_long_name_is_refused" {
  command = plan

  variables {
    cluster_name = "a-name-of-more-than-24-letters"
  }

  expect_failures = [var.cluster_name]
}

run "a_short_account_is_refused" {
  command = plan

  variables {
    account_id = "1234"
  }

  expect_failures = [var.account_id]
}
