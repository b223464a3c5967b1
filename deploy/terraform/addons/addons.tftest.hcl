mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_eks_cluster" {
    defaults = {
      endpoint              = "https://plate.example"
      certificate_authority = [{ data = "bm90IGEgY2VydGlmaWNhdGU=" }]
    }
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
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata:
          name: gateways.gateway.networking.k8s.io
          annotations:
            gateway.networking.k8s.io/bundle-version: v1.6.1
      YAML
    }
  }
}

variables {
  region             = "eu-north-1"
  cluster_name       = "plate"
  vpc_id             = "vpc-0123456789abcdef0"
  interruption_queue = "plate"
}

run "the_endpoint_and_its_name" {
  command = plan

  assert {
    condition     = local.api.host == "https://plate.example" && local.api.tls_server_name == "plate.example"
    error_message = "The API must be reached at its endpoint."
  }

  assert {
    condition     = output.storage_class == "gp3" && output.versions.karpenter == "1.14.1"
    error_message = "The add-ons must be there."
  }
}

run "through_a_tunnel" {
  command = plan

  variables {
    api_address = "https://127.0.0.1:8443"
  }

  assert {
    condition     = local.api.host == "https://127.0.0.1:8443" && local.api.tls_server_name == "plate.example"
    error_message = "Through a tunnel the certificate must still be held to the endpoint's name."
  }
}

run "plain_http_is_refused" {
  command = plan

  variables {
    api_address = "http://127.0.0.1:8443"
  }

  expect_failures = [var.api_address]
}

run "nonsense_is_no_region" {
  command = plan

  variables {
    region = "west"
  }

  expect_failures = [var.region]
}

run "a_name_is_no_vpc" {
  command = plan

  variables {
    vpc_id = "plate"
  }

  expect_failures = [var.vpc_id]
}
