data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

# Zones proper: Local and Wavelength Zones have to be opted into.
data "aws_availability_zones" "regular" {
  #checkov:skip=CKV_AWS_394:a zone that is added later changes nothing, for terraform_data.zones keeps the first choice
  state = "available"
  # EKS puts no control plane into these.
  exclude_zone_ids = ["use1-az3", "usw1-az2", "cac1-az3"]

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_ec2_instance_type_offerings" "by_zone" {
  for_each = var.instance_types

  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [each.key]
  }
}

locals {
  offered = setintersection(
    toset(data.aws_availability_zones.regular.names),
    [for offer in data.aws_ec2_instance_type_offerings.by_zone : toset(offer.locations)]...
  )
  allowed    = length(var.availability_zones) == 0 ? local.offered : setintersection(local.offered, toset(var.availability_zones))
  candidates = sort(tolist(local.allowed))
  zones      = terraform_data.zones.output
  nat_count  = var.nat == "one" ? 1 : var.zone_count
}

# The zones are chosen once. Where AWS begins to offer a type in one more zone later, the sorted list changes, and
# without this the subnets would be replaced under a running cluster.
resource "terraform_data" "zones" {
  input            = slice(local.candidates, 0, min(var.zone_count, length(local.candidates)))
  triggers_replace = [var.zone_count, var.availability_zones]

  lifecycle {
    ignore_changes = [input]

    precondition {
      condition     = length(local.candidates) >= var.zone_count
      error_message = "${data.aws_region.current.region} has ${length(local.candidates)} zones (${join(", ", local.candidates)}) that offer all of: ${join(", ", var.instance_types)}; zone_count asks for ${var.zone_count}. Choose another region or other instance types."
    }
  }
}

resource "aws_vpc" "this" {
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.cluster_name }
}

# Without rules, so that whatever forgets to name a security group reaches nothing.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.cluster_name}-default-closed" }
}

# An eighth of the range for each private subnet, for every pod takes an address; sixteenths of the last sixteenth for
# the public ones, which hold load balancers and NAT gateways alone.
resource "aws_subnet" "private" {
  count = var.zone_count

  vpc_id            = aws_vpc.this.id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 3, count.index)

  tags = {
    Name                              = "${var.cluster_name}-private-${count.index}"
    "kubernetes.io/role/internal-elb" = "1"
    "karpenter.sh/discovery"          = var.cluster_name
  }
}

resource "aws_subnet" "public" {
  count = var.zone_count

  vpc_id                  = aws_vpc.this.id
  availability_zone       = local.zones[count.index]
  cidr_block              = cidrsubnet(var.vpc_cidr, 8, 240 + count.index)
  map_public_ip_on_launch = false

  tags = {
    Name                     = "${var.cluster_name}-public-${count.index}"
    "kubernetes.io/role/elb" = "1"
  }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id

  tags = { Name = var.cluster_name }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.cluster_name}-public" }
}

resource "aws_route" "to_internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "public" {
  count = var.zone_count

  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public.id
}

resource "aws_eip" "nat" {
  count = local.nat_count

  domain = "vpc"

  tags = { Name = "${var.cluster_name}-nat-${count.index}" }
}

resource "aws_nat_gateway" "this" {
  count = local.nat_count

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.public[count.index].id

  tags = { Name = "${var.cluster_name}-${count.index}" }

  depends_on = [aws_internet_gateway.this]
}

resource "aws_route_table" "private" {
  count = var.zone_count

  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.cluster_name}-private-${count.index}" }
}

resource "aws_route" "to_nat" {
  count = var.zone_count

  route_table_id         = aws_route_table.private[count.index].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[min(count.index, local.nat_count - 1)].id
}

resource "aws_route_table_association" "private" {
  count = var.zone_count

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private[count.index].id
}
