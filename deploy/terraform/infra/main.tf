# The account's part of the deployment: what is billed by AWS. What runs inside the cluster is the root `addons`.

data "aws_caller_identity" "current" {}

locals {
  # What the overlays' node pools ask for (deploy/kubernetes/overlays).
  overlay_instance_types = tomap({
    none = []
    gpu  = ["g6e.xlarge"]
    inf2 = ["inf2.8xlarge"]
    trn1 = ["trn1.2xlarge"]
  })
  engine_instance_types = var.engine_instance_types != null ? var.engine_instance_types : toset(local.overlay_instance_types[var.accelerator])

  model_uri = coalesce(var.model_uri, {
    none = "demo"
    gpu  = "s3://${module.storage.model_bucket}/sdxl-gpu"
    inf2 = "s3://${module.storage.model_bucket}/sdxl-inf2"
    trn1 = "s3://${module.storage.model_bucket}/sdxl-trn1"
  }[var.accelerator])
}

module "network" {
  source = "../modules/network"

  cluster_name        = var.cluster_name
  vpc_cidr            = var.vpc_cidr
  zone_count          = var.zone_count
  availability_zones  = var.availability_zones
  instance_types      = setunion(local.engine_instance_types, var.system_instance_types)
  nat                 = var.nat
  interface_endpoints = var.interface_endpoints
  log_days            = var.log_days
}

module "cluster" {
  source = "../modules/cluster"

  cluster_name          = var.cluster_name
  kubernetes_version    = var.kubernetes_version
  subnet_ids            = module.network.private_subnet_ids
  public_access_cidrs   = var.public_access_cidrs
  admins                = var.admins
  system_instance_types = var.system_instance_types
  system_nodes          = var.system_nodes
  addon_versions        = var.addon_versions
  logs_key_arn          = module.network.logs_key_arn
  log_days              = var.log_days
}

module "karpenter" {
  source = "../modules/karpenter"

  cluster_name = var.cluster_name
  cluster_arn  = module.cluster.cluster_arn
}

module "storage" {
  source = "../modules/storage"

  cluster_name             = var.cluster_name
  cluster_arn              = module.cluster.cluster_arn
  vpc_id                   = module.network.vpc_id
  subnet_ids               = module.network.private_subnet_ids
  client_security_group_id = module.cluster.cluster_security_group_id
  keep_data                = var.keep_data
  multi_zone               = var.multi_zone
  database_instance_class  = var.database_instance_class
  database_gib             = var.database_gib
  backup_days              = var.backup_days
  cache_node_type          = var.cache_node_type
  picture_days             = var.picture_days
  model_uri                = var.model_uri
  maintenance_window       = var.maintenance_window
  apply_now                = var.apply_now
  create_repositories      = var.create_repositories
  logs_key_arn             = module.network.logs_key_arn
  log_days                 = var.log_days
}
