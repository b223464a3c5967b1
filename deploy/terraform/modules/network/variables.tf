variable "cluster_name" {
  description = "Name of the EKS cluster, for names and for the tags that find the subnets."
  type        = string
}

variable "vpc_cidr" {
  description = "IPv4 range of the VPC, /16 to /19. Pods take their addresses from it."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 19, false)
    error_message = "vpc_cidr must be an IPv4 range of /16 to /19, such as 10.42.0.0/16."
  }
}

variable "zone_count" {
  description = "Availability zones to use, 2 to 4."
  type        = number
  default     = 2

  validation {
    condition     = var.zone_count >= 2 && var.zone_count <= 4 && floor(var.zone_count) == var.zone_count
    error_message = "zone_count must be 2, 3 or 4: EKS, the database and the cache need at least two zones."
  }
}

variable "availability_zones" {
  description = "Zones to choose from, by name; empty for every zone of the region."
  type        = list(string)
  default     = []
}

variable "instance_types" {
  description = "Instance types that each zone must offer."
  type        = set(string)
  default     = []
}

variable "nat" {
  description = "`one` NAT gateway for all zones, or one `per-zone`, which outlives the loss of a zone."
  type        = string
  default     = "one"

  validation {
    condition     = contains(["one", "per-zone"], var.nat)
    error_message = "nat must be one or per-zone."
  }
}

variable "interface_endpoints" {
  description = "AWS services reached without the NAT gateway, such as ecr.api, ecr.dkr, sts, eks-auth. Each costs money in each zone."
  type        = set(string)
  default     = []
}

variable "log_days" {
  description = "Days that flow logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_days)
    error_message = "log_days must be a retention that CloudWatch knows, such as 30, 90 or 365."
  }
}
