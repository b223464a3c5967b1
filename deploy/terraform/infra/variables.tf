variable "region" {
  description = "AWS region, such as us-west-2."
  type        = string

  validation {
    condition     = can(regex("^(af|ap|ca|eu|il|me|mx|sa|us|us-gov)-(central|north|south|east|west|northeast|northwest|southeast|southwest)-[1-9]$", var.region))
    error_message = "region must be the name of an AWS region, such as us-west-2 or eu-central-1; not a zone, such as us-west-2a. China's regions name services otherwise and are not known here."
  }
}

variable "account_id" {
  description = "The account to work in; any other is refused. Null for whichever the credentials are of."
  type        = string
  default     = null

  validation {
    condition     = var.account_id == null ? true : can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must have twelve digits."
  }
}

variable "cluster_name" {
  description = "Name of the cluster, and the beginning of every other name. 3 to 24 small letters, digits and hyphens."
  type        = string
  default     = "mezzotint"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]*(-[a-z0-9]+)*$", var.cluster_name)) && length(var.cluster_name) >= 3 && length(var.cluster_name) <= 24
    error_message = "cluster_name must have 3 to 24 small letters, digits and single hyphens, and begin with a letter: buckets, databases and roles are named after it."
  }
}

variable "accelerator" {
  description = "What engines run on: none (CPUs), gpu, inf2 or trn1."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "gpu", "inf2", "trn1"], var.accelerator)
    error_message = "accelerator must be none, gpu, inf2 or trn1."
  }
}

variable "engine_instance_types" {
  description = "Instance types that every zone must offer; null for those of the accelerator's overlay."
  type        = set(string)
  default     = null
}

variable "kubernetes_version" {
  description = "Kubernetes version, 1.35 or 1.36."
  type        = string
  default     = "1.35"

  validation {
    condition     = contains(["1.35", "1.36"], var.kubernetes_version)
    error_message = "kubernetes_version must be 1.35 or 1.36: what the manifests and the add-ons were written for."
  }
}

variable "vpc_cidr" {
  description = "IPv4 range of the VPC, /16 to /19."
  type        = string
  default     = "10.42.0.0/16"
}

variable "zone_count" {
  description = "Availability zones to use, 2 to 4."
  type        = number
  default     = 2
}

variable "availability_zones" {
  description = "Zones to choose from, by name; empty for every zone of the region."
  type        = list(string)
  default     = []
}

variable "nat" {
  description = "`one` NAT gateway, or one `per-zone`."
  type        = string
  default     = "one"
}

variable "interface_endpoints" {
  description = "AWS services reached without the NAT gateway, such as ecr.api, ecr.dkr, sts."
  type        = set(string)
  default     = []
}

variable "public_access_cidrs" {
  description = "IPv4 ranges that reach the Kubernetes API from the internet; empty for the VPC alone. Never everybody."
  type        = list(string)
  default     = []
}

variable "admins" {
  description = "ARNs of IAM roles or users that govern the cluster, beside whoever applies this."
  type        = set(string)
  default     = []
}

variable "system_instance_types" {
  description = "Instance types of the system nodes."
  type        = list(string)
  default     = ["m6i.large"]
}

variable "system_nodes" {
  description = "System nodes: how few, how many, how many at first."
  type = object({
    min     = optional(number, 2)
    max     = optional(number, 4)
    desired = optional(number, 2)
  })
  default = {}
}

variable "addon_versions" {
  description = "Versions of EKS add-ons, by name; what is not named gets EKS's default."
  type        = map(string)
  default     = {}
}

variable "keep_data" {
  description = "Whether removal is refused while there is data. Set false, and apply, before taking everything down."
  type        = bool
  default     = true
}

variable "multi_zone" {
  description = "Whether database and cache have a second machine in another zone."
  type        = bool
  default     = false
}

variable "database_instance_class" {
  description = "RDS instance class."
  type        = string
  default     = "db.t4g.medium"
}

variable "database_gib" {
  description = "GiB of the database's disk at first; it grows to five times as much."
  type        = number
  default     = 20
}

variable "backup_days" {
  description = "Days that the database's backups are kept, 1 to 35."
  type        = number
  default     = 7
}

variable "cache_node_type" {
  description = "ElastiCache node type."
  type        = string
  default     = "cache.t4g.small"
}

variable "picture_days" {
  description = "Days after which the bucket itself forgets a picture: a net below the service's own sweep, so longer than MEZZOTINT_JOB_TTL_S and 30 days."
  type        = number
  default     = 60
}

variable "maintenance_window" {
  description = "When AWS may restart database and cache, in UTC: ddd:hh:mm-ddd:hh:mm, an hour or more; the database's backup is in the hour after it. Null for times of AWS's choice."
  type        = string
  default     = null
}

variable "apply_now" {
  description = "Whether changes that restart database or cache are made by the apply itself, and not in the next maintenance window."
  type        = bool
  default     = false
}

variable "create_repositories" {
  description = "Whether to make the ECR repositories; false in an account and region that has them from another cluster."
  type        = bool
  default     = true
}

variable "log_days" {
  description = "Days that logs are kept in CloudWatch."
  type        = number
  default     = 365
}

variable "model_uri" {
  description = "What engines' pods fetch: s3://bucket/prefix. Null for the accelerator's own prefix of the model bucket; with accelerator none, demo, which no overlay takes."
  type        = string
  default     = null
}

variable "lb_scheme" {
  description = "internal, or internet-facing."
  type        = string
  default     = "internal"

  validation {
    condition     = contains(["internal", "internet-facing"], var.lb_scheme)
    error_message = "lb_scheme must be internal or internet-facing."
  }
}

variable "lb_cidrs" {
  description = "IPv4 ranges that reach the load balancer; empty for the VPC alone."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.lb_cidrs : can(cidrhost(cidr, 0))])
    error_message = "lb_cidrs must hold IPv4 ranges, such as 203.0.113.7/32."
  }
}

variable "certificate_arn" {
  description = "ACM certificate of the load balancer, for HTTPS; empty for HTTP."
  type        = string
  default     = ""

  validation {
    condition     = var.certificate_arn == "" || can(regex("^arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$", var.certificate_arn))
    error_message = "certificate_arn must be the ARN of an ACM certificate, or empty."
  }
}
