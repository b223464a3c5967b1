variable "cluster_name" {
  description = "Name of the EKS cluster."
  type        = string
}

variable "cluster_endpoint" {
  description = "Address of the API, for Karpenter's nodes."
  type        = string
}

variable "region" {
  description = "The cluster's region: the controllers cannot ask a node for it."
  type        = string
}

variable "vpc_id" {
  description = "The VPC: the controllers cannot ask a node for it."
  type        = string
}

variable "interruption_queue" {
  description = "Name of Karpenter's queue."
  type        = string
}

variable "accelerator" {
  description = "Whose device plugin is installed: none, gpu, inf2 or trn1."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "gpu", "inf2", "trn1"], var.accelerator)
    error_message = "accelerator must be none, gpu, inf2 or trn1."
  }
}

variable "monitoring" {
  description = "Whether to install kube-prometheus-stack; false where the cluster is watched otherwise. The manifests' ServiceMonitors need its resource definitions."
  type        = bool
  default     = true
}

variable "metrics_days" {
  description = "Days that Prometheus keeps."
  type        = number
  default     = 15
}

variable "metrics_gib" {
  description = "GiB of Prometheus's disk."
  type        = number
  default     = 20
}

variable "alert_routes" {
  description = "Secret in namespace monitoring whose alertmanager.yaml says where alerts go; it is made by hand, so that no receiver's address is in the state."
  type        = string
  default     = "alertmanager-routes"
}
