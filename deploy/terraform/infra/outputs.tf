# The names are the contract of deploy/README.md: what `site.env` takes, in small letters, then the rest.

output "cluster_name" {
  description = "CLUSTER_NAME"
  value       = module.cluster.cluster_name
}

output "region" {
  description = "REGION"
  value       = var.region
}

output "node_role" {
  description = "NODE_ROLE: the IAM role's name of Karpenter's nodes."
  value       = module.karpenter.node_role
}

output "model_uri" {
  description = "MODEL_URI: what the init container fetches."
  value       = local.model_uri
}

output "image_store" {
  description = "IMAGE_STORE"
  value       = module.storage.image_store
}

output "valkey_address" {
  description = "VALKEY_ADDRESS"
  value       = module.storage.valkey_address
}

output "lb_scheme" {
  description = "LB_SCHEME"
  value       = var.lb_scheme
}

output "lb_cidrs" {
  description = "LB_CIDRS, with commas between."
  value       = join(",", length(var.lb_cidrs) > 0 ? var.lb_cidrs : [module.network.vpc_cidr])
}

output "certificate_arn" {
  description = "CERTIFICATE_ARN"
  value       = var.certificate_arn
}

output "account_id" {
  description = "The account all this is in."
  value       = data.aws_caller_identity.current.account_id
}

output "accelerator" {
  description = "What engines run on."
  value       = var.accelerator
}

output "availability_zones" {
  description = "The zones that were chosen."
  value       = module.network.availability_zones
}

output "vpc_id" {
  description = "The VPC."
  value       = module.network.vpc_id
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = module.cluster.cluster_endpoint
}

output "cluster_version" {
  description = "Kubernetes version of the control plane."
  value       = module.cluster.cluster_version
}

output "model_bucket" {
  description = "Bucket of weights and compiled artefacts."
  value       = module.storage.model_bucket
}

output "database_host" {
  description = "The database's host; port 5432."
  value       = module.storage.database_host
}

output "database_name" {
  description = "The database's name."
  value       = module.storage.database_name
}

output "database_secret_arn" {
  description = "RDS's own secret: JSON with username and password."
  value       = module.storage.database_secret_arn
}

output "valkey_secret_arn" {
  description = "Secret that holds Valkey's auth token."
  value       = module.storage.valkey_secret_arn
}

output "interruption_queue" {
  description = "Karpenter's queue."
  value       = module.karpenter.interruption_queue
}

output "registry" {
  description = "ECR's host and the prefix of the images' names."
  value       = module.storage.registry
}
