output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "vpc_cidr" {
  description = "Its IPv4 range."
  value       = aws_vpc.this.cidr_block
}

output "availability_zones" {
  description = "The zones that were chosen; they offer every instance type that was asked for."
  value       = local.zones
}

output "private_subnet_ids" {
  description = "Subnets of nodes, database and cache, one in each zone."
  # Whoever builds on these subnets waits until they reach the outside: a node without a route never joins.
  value      = aws_subnet.private[*].id
  depends_on = [aws_route.to_nat, aws_route_table_association.private]
}

output "public_subnet_ids" {
  description = "Subnets of load balancers and NAT gateways, one in each zone."
  value       = aws_subnet.public[*].id
}

output "logs_key_arn" {
  description = "KMS key of log groups."
  value       = aws_kms_key.logs.arn
}
