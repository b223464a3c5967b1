provider "aws" {
  region              = var.region
  allowed_account_ids = var.account_id == null ? null : [var.account_id]

  default_tags {
    tags = { "mezzotint.dev/cluster" = var.cluster_name }
  }
}

# The cluster exists before this root is applied: providers must not be configured from what the same apply makes.
data "aws_eks_cluster" "this" {
  name = var.cluster_name
}

locals {
  api = {
    host                   = coalesce(var.api_address, data.aws_eks_cluster.this.endpoint)
    cluster_ca_certificate = base64decode(data.aws_eks_cluster.this.certificate_authority[0].data)
    # Through a tunnel the certificate still bears the endpoint's own name.
    tls_server_name = trimprefix(data.aws_eks_cluster.this.endpoint, "https://")
    token_command   = ["eks", "get-token", "--cluster-name", var.cluster_name, "--region", var.region, "--output", "json"]
  }
}

provider "kubernetes" {
  host                   = local.api.host
  cluster_ca_certificate = local.api.cluster_ca_certificate
  tls_server_name        = local.api.tls_server_name

  exec {
    api_version = "client.authentication.k8s.io/v1beta1"
    command     = "aws"
    args        = local.api.token_command
  }
}

provider "helm" {
  kubernetes = {
    host                   = local.api.host
    cluster_ca_certificate = local.api.cluster_ca_certificate
    tls_server_name        = local.api.tls_server_name

    exec = {
      api_version = "client.authentication.k8s.io/v1beta1"
      command     = "aws"
      args        = local.api.token_command
    }
  }
}
