# All but the last five are outputs of the root `infra`, under the same names.

variable "region" {
  description = "AWS region of the cluster."
  type        = string

  validation {
    condition     = can(regex("^(af|ap|ca|eu|il|me|mx|sa|us|us-gov)-(central|north|south|east|west|northeast|northwest|southeast|southwest)-[1-9]$", var.region))
    error_message = "region must be the name of an AWS region, such as us-west-2 or eu-central-1; not a zone, such as us-west-2a. China's regions name services otherwise and are not known here."
  }
}

variable "account_id" {
  description = "The account to work in; any other is refused."
  type        = string
  default     = null

  validation {
    condition     = var.account_id == null ? true : can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must have twelve digits."
  }
}

variable "cluster_name" {
  description = "Name of the EKS cluster; it must exist."
  type        = string
}

variable "vpc_id" {
  description = "The cluster's VPC."
  type        = string

  validation {
    condition     = startswith(var.vpc_id, "vpc-")
    error_message = "vpc_id must be the id of a VPC, such as vpc-0123456789abcdef0: infra's output of that name."
  }
}

variable "accelerator" {
  description = "What engines run on: none, gpu, inf2 or trn1."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "gpu", "inf2", "trn1"], var.accelerator)
    error_message = "accelerator must be none, gpu, inf2 or trn1."
  }
}

variable "interruption_queue" {
  description = "Name of Karpenter's queue."
  type        = string
}

variable "api_address" {
  description = "Where the Kubernetes API is reached, where that is not its endpoint: https://127.0.0.1:8443 through a tunnel."
  type        = string
  default     = null

  validation {
    condition     = var.api_address == null ? true : startswith(var.api_address, "https://")
    error_message = "api_address must begin with https://."
  }
}

variable "monitoring" {
  description = "Whether to install kube-prometheus-stack."
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
