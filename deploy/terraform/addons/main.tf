module "addons" {
  source = "../modules/addons"

  cluster_name       = var.cluster_name
  cluster_endpoint   = data.aws_eks_cluster.this.endpoint
  region             = var.region
  vpc_id             = var.vpc_id
  accelerator        = var.accelerator
  interruption_queue = var.interruption_queue
  monitoring         = var.monitoring
  metrics_days       = var.metrics_days
  metrics_gib        = var.metrics_gib
  alert_routes       = var.alert_routes
}
