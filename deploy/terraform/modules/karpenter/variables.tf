variable "cluster_name" {
  description = "Name of the EKS cluster, for names; it need not exist yet."
  type        = string
}

variable "cluster_arn" {
  description = "ARN of the EKS cluster."
  type        = string
}
